"""Devices that carry for each other, and the keys of a courier: what unit tests of store and forward need."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from ulid import ULID

from edge_runtime.carriers.exchange import Exchange
from edge_runtime.carriers.folder import FolderCarrier
from edge_runtime.carriers.pieces import PieceFolder, piece_path
from edge_runtime.carriers.port import Limits
from edge_runtime.carriers.station import Ground, Station, open_station
from edge_runtime.clock import FlooredClock
from edge_runtime.folder import EdgeFolder, write_durable
from edge_runtime.identity import Identity
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.settings import CarrierSettings, OutboxLimits
from edge_runtime.trust.keyring import Keyring
from edge_runtime.trust.record import TrustRecord, write_record
from schemas.aggregator import Artifact
from schemas.bundles import Addressed, CarriedLetter, Contents, Parcel, open_bundle, whole, write_bundle
from schemas.courier import Receipt
from schemas.depot import TrustState, write_recipe
from schemas.envelope import Signer
from schemas.events import PLATFORM_RECIPIENT, Lane, UpLetter
from schemas.ids import Address
from schemas.letters import read_up, write_down
from schemas.registry import EventReport
from schemas.trust import SIGNED_KINDS, ServiceKey, ServicesDocument

FLEET = "home"
COURIER = "/services/courier"


@dataclass
class Realm:
    """One platform: the keys of its services, and what the courier would do with them."""

    platform: str = field(default_factory=lambda: str(ULID()))
    signers: dict[str, Signer] = field(default_factory=lambda: {name: Signer.generate() for name in SIGNED_KINDS})
    seal: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    revision: int = 0

    def publish(self, folder: Path, but: str = "") -> None:
        """Give a device the keys of the services, except of one."""
        keys = [
            ServiceKey(
                keyid=signer.keyid,
                public=base64.b64encode(signer.public_key).decode(),
                service=service,
                kinds=list(SIGNED_KINDS[service]),
                generation=1,
                seal=base64.b64encode(self.seal.public_key().public_bytes_raw()).decode()
                if service == "courier"
                else None,
            )
            for service, signer in self.signers.items()
            if service != but
        ]
        record = TrustRecord(
            root_sha256="0" * 64,
            accepted=TrustState(root=1),
            cache="cache-1",
            files={},
            services=ServicesDocument(platform=self.platform, keys=keys),
            floors={},
            refreshed=datetime.now(UTC),
        )
        write_record(folder / "trust", record)

    def open(self, parcels: list[Parcel]) -> Contents:
        """What the courier reads."""
        assert whole(parcels)
        return open_bundle(parcels, self.seal)

    def receipt(self, to: Address, epoch: str, session: str, marks: dict[Lane, int]) -> CarriedLetter:
        """Signed, as it stands in a bundle down."""
        self.revision += 1
        now = datetime.now(UTC)
        raw = write_down(
            "receipt",
            Receipt(session=session, epoch=epoch, marks=marks),
            letter_id=str(ULID()),
            service="courier",
            address=to,
            platform=self.platform,
            time=now,
            expires=now + timedelta(days=30),
            generation=1,
            revision=self.revision,
            slot="-",
            signer=self.signers["courier"],
        )
        return CarriedLetter(kind="receipt", envelope=raw.decode())

    def answer(
        self,
        to: Traveller,
        contents: Contents,
        *,
        acknowledges: tuple[str, ...] = (),
        signer: Signer | None = None,
        lifetime_s: int = 86_400,
    ) -> list[Parcel]:
        """A bundle of the courier to a device."""
        label = Addressed(
            bundle_id=str(ULID()),
            platform=self.platform,
            origin=COURIER,
            destination=to.address.source,
            created=datetime.now(UTC),
            lifetime_s=lifetime_s,
            priority="control",
            acknowledges=acknowledges,
        )
        seal_key = to.identity.seal_key
        return write_bundle(contents, label, seal_key=seal_key, signer=signer or self.signers["courier"])


class Traveller:
    """A device without a link, unless `linked` is set."""

    def __init__(self, realm: Realm, folder: Path, name: str, refused: Sequence[str] = (), **settings: object) -> None:
        self.realm, self.folder = realm, EdgeFolder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.identity = Identity(
            fleet=FLEET,
            device=name,
            platform=realm.platform,
            url="mqtts://broker:1",
            root_sha256="0" * 64,
            letter_seed=base64.b64encode(os.urandom(32)).decode(),
            seal_seed=base64.b64encode(os.urandom(32)).decode(),
        )
        self.address = Address(FLEET, name)
        self.settings = CarrierSettings(**settings)
        self.linked = False
        self.refused = refused
        self.arrived = 0
        realm.publish(folder)
        self._open()

    def _open(self) -> None:
        folder = self.folder
        self.inbox = Inbox(folder.inbox, lambda: datetime.now(UTC).timestamp())
        self.clock = FlooredClock(self.inbox.time_floor)
        self.outbox = Outbox(folder.outbox, OutboxLimits(), lambda: self.clock.now().timestamp())
        self.keyring = Keyring(folder.trust)
        self.station: Station = open_station(
            Ground(
                folder=folder,
                settings=self.settings,
                outbox=self.outbox,
                inbox=self.inbox,
                keyring=self.keyring,
                clock=self.clock,
                identity=lambda: self.identity,
                trust=self.keyring.state,
                refused=lambda: self.refused,
                linked=lambda: self.linked,
                detour=lambda: not self.linked,
                arrived=self._note,
            )
        )
        self.custodian, self.store = self.station.custodian, self.station.store

    def _note(self) -> None:
        self.arrived += 1

    def restart(self) -> None:
        """A new process on the same files."""
        self.close()
        self._open()

    def close(self) -> None:
        self.station.close()
        self.outbox.close()
        self.inbox.close()

    def say(self, text: str = "hello", lane: Lane = "normal") -> str:
        """Put a letter into the outbox."""
        return self.outbox.add("event", EventReport(name="said", severity="info", reason="test", message=text), lane)

    def stick(self, directory: Path, pieces: PieceFolder | None = None) -> FolderCarrier:
        return FolderCarrier(self.custodian, pieces, directory)

    def bundles(self, destination: str = PLATFORM_RECIPIENT) -> dict[str, list[Parcel]]:
        """Whole bundles in custody, by id."""
        return {bundle: self.store.fragments_of(bundle) for bundle in self.store.whole(destination)}


def meet(one: Traveller, other: Traveller, *, cut: int | None = None, limits: Limits | None = None) -> int:
    """Let two devices meet; the connection is lost after `cut` frames. Returns how many frames there were."""
    left = one.custodian.meet(other.address, other.identity.public_key, limits)
    right = other.custodian.meet(one.address, one.identity.public_key, limits)
    return pump(left, right, cut=cut)


def pump(left: Exchange, right: Exchange, *, cut: int | None = None, most: int = 5_000) -> int:
    """Carry frames to and fro, one at a time, until both are finished or the connection is lost."""
    queue = [(right, frame) for frame in left.begin()] + [(left, frame) for frame in right.begin()]
    frames = 0
    while queue:
        if cut is not None and frames >= cut:
            return frames
        to, frame = queue.pop(0)
        frames += 1
        assert frames < most, "the exchange does not end"
        back = left if to is right else right
        queue += [(back, answer) for answer in to.receive(frame)]
    assert left.finished
    assert right.finished
    return frames


def letters_of(contents: Contents) -> list[UpLetter[EventReport]]:
    """The events in a bundle up, in their order."""
    from schemas.envelope import parse

    return [read_up(parse(letter.envelope.encode()).body, letter.kind) for letter in contents.letters]


def pieces_on(stick: Path, *contents: bytes) -> tuple[Artifact, bytes]:
    """An artifact, its pieces and its recipe as the platform writes them."""
    whole = b"".join(contents)
    recipe = write_recipe([(hashlib.sha256(part).digest(), len(part)) for part in contents])
    for data in (*contents, recipe):
        write_durable(piece_path(stick / "causeway" / "pieces", hashlib.sha256(data).hexdigest()), data)
    return (
        Artifact(
            sha256=hashlib.sha256(whole).hexdigest(),
            length=len(whole),
            recipe=hashlib.sha256(recipe).hexdigest(),
            pieces=len(contents),
        ),
        whole,
    )
