"""A raw device that speaks through others, and one that carries for it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from ulid import ULID

from schemas.bundles import (
    BUNDLE_TYPE,
    MAX_FRAGMENT_BYTES,
    Addressed,
    CarriedLetter,
    Contents,
    Parcel,
    bundle_to_letter,
    open_bundle,
    read_parcel,
    whole,
    write_bundle,
)
from schemas.courier import Clock, Hello, Receipt
from schemas.depot import TrustState
from schemas.envelope import Signer, Verifier, parse
from schemas.events import Lane, Message, Untyped
from schemas.letters import check_down, read_down
from services.kit.bus import Bus
from services.kit.devices import DeviceRecord, Standing
from services.kit.keys import LetterKey, read_letter_key
from tests.support.courier_world import stored
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, in_bus


def courier_key(live: LivePlatform) -> LetterKey:
    """The courier's keys."""
    return read_letter_key(live.state.service_key("courier"))


@dataclass
class CarriedDevice(RawDevice):
    """A device whose letters travel in bundles; `session` is its carried one."""

    seal: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    trust: TrustState | None = None

    def record(self, standing: Standing = "enrolled") -> DeviceRecord:
        public = base64.b64encode(self.seal.public_key().public_bytes_raw()).decode()
        return super().record(standing).model_copy(update={"seal_key": public})

    def enclose(self, kind: str = "event", data: Message | None = None, *, lane: Lane = "normal") -> CarriedLetter:
        """Sign the next letter of a lane, for a bundle."""
        sequence = self.issued().get(lane, 0) + 1
        raw = self.write(kind, data, lane=lane, sequence=sequence)
        self.sent[lane, sequence] = (kind, raw)
        return CarriedLetter(kind=kind, envelope=raw.decode())

    def enclose_much(self, fragments: int) -> list[CarriedLetter]:
        """Letters that make a bundle of so many fragments."""
        size = (fragments - 1) * MAX_FRAGMENT_BYTES // fragments
        noise = [base64.b64encode(os.urandom(size)).decode() for _ in range(fragments)]
        return [self.enclose("sample", Untyped.model_validate({"noise": text})) for text in noise]

    def bundle(
        self,
        letters: Sequence[CarriedLetter] = (),
        *,
        got: Sequence[str] = (),
        hello: bool = True,
        bundle_id: str | None = None,
        lifetime_s: int = 3_600,
        signer: Signer | None = None,
        platform: str | None = None,
        seal_to: X25519PrivateKey | None = None,
    ) -> list[Parcel]:
        """A bundle to the platform."""
        greeting = Hello(
            session=self.session,
            epoch=self.epoch,
            sent=self.issued(),
            marks={},
            trust=self.trust,
            agent="raw",
            clock=Clock(synchronised=True),
        )
        seal = seal_to or courier_key(self.live).seal_key
        assert seal is not None
        return write_bundle(
            Contents(hello=greeting if hello else None, got=list(got), letters=list(letters)),
            Addressed(
                bundle_id=bundle_id or str(ULID()),
                platform=platform or self.live.settings.platform,
                origin=self.address.source,
                destination="/platform",
                created=datetime.now(UTC),
                lifetime_s=lifetime_s,
                priority="normal",
            ),
            seal_key=seal.public_key().public_bytes_raw(),
            signer=signer or self.signer,
        )

    def answers(self, frames: Sequence[bytes]) -> list[Answer]:
        """Every whole bundle for this device among frames, verified and opened; the oldest in front."""
        courier = Verifier(courier_key(self.live).signer.public_key)
        parcels: dict[str, list[Parcel]] = {}
        for frame in frames:
            parcel = read_parcel(frame)
            if parcel.head.destination == self.address.source:
                assert parcel.envelope.payload_type == BUNDLE_TYPE
                parcel.envelope.verify({courier.keyid: courier})
                assert parcel.head.origin == "/services/courier"
                parcels.setdefault(parcel.head.id, []).append(parcel)
        complete = [parcels[name] for name in sorted(parcels) if whole(parcels[name])]
        return [Answer(self, each[0], open_bundle(each, self.seal)) for each in complete]


@dataclass(frozen=True)
class Answer:
    """A bundle down, opened by its destination."""

    device: CarriedDevice
    parcel: Parcel
    contents: Contents

    @property
    def acknowledges(self) -> list[str]:
        return self.parcel.head.acknowledges

    def receipts(self) -> list[Receipt]:
        """Receipts that are really the courier's, for this device and its session."""
        return [letter.data for letter in self.letters("receipt") if letter.data.session == self.device.session]

    def letters(self, kind: str) -> list[Any]:
        """Letters of one kind."""
        found = [read_down(parse(c.envelope.encode()).body, kind) for c in self.contents.letters if c.kind == kind]
        for letter in found:
            check_down(letter, self.device.address, self.device.live.settings.platform, datetime.now(UTC))
        return found


def carry(carrier: RawDevice, parcels: Sequence[Parcel]) -> None:
    """Hand fragments over as the carrier's own letters."""
    for parcel in parcels:
        carrier.send("bundle", bundle_to_letter(parcel), lane="bulk")


def brought(carrier: RawDevice) -> list[bytes]:
    """Frames that came down to a carrier."""
    return [raw for kind, raw in carrier.letters if kind == "bundle"]


def answered(device: CarriedDevice, carrier: RawDevice, bundle: str) -> Answer:
    """Wait for the answer that acknowledges a bundle."""

    def found() -> Answer | None:
        return next((a for a in device.answers(brought(carrier)) if bundle in a.acknowledges), None)

    answer = eventually(found, f"an answer to bundle {bundle} of {device.name} at {carrier.name}")
    assert answer is not None
    return answer


def unacknowledged(live: LivePlatform) -> int:
    """Carriers' letters that the courier still holds."""

    async def read(bus: Bus) -> int:
        info = await bus.js.consumer_info("IN", "courier-bundle")
        return (info.num_ack_pending or 0) + (info.num_pending or 0)

    return in_bus(live, "courier", read)


def refusals(live: LivePlatform, device: RawDevice) -> list[str]:
    """Reasons of what REJECTS holds of a device."""
    return [
        headers["Causeway-Reason"]
        for _, headers, _ in stored(live, "REJECTS")
        if f".{device.name}." in headers["Causeway-Subject"]
    ]
