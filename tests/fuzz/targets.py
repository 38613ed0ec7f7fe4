"""What is fuzzed: each parser with valid inputs to damage, and the errors by which it may refuse."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import zstandard
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_runtime.carriers import frames
from edge_runtime.errors import EdgeError
from edge_runtime.link import mqtt
from edge_runtime.trust.pack import open_pack
from schemas import bundles, letters, topics
from schemas.aggregator import Update
from schemas.bundles import Addressed, CarriedLetter, Contents, open_bundle, read_parcel, write_bundle
from schemas.depot import (
    Slice,
    TrustAnnouncement,
    TrustPack,
    Want,
    read_piece,
    read_recipe,
    read_slice,
    write_piece,
    write_recipe,
    write_slice,
)
from schemas.envelope import Signer, Verifier, parse, seal
from schemas.errors import ContractError
from schemas.events import PLATFORM_RECIPIENT, Message
from schemas.ids import Address
from schemas.registry import Token
from schemas.trust import ServicesDocument
from services.aggregator.updates import UpdateError, open_update
from services.courier.up.ordering import parse_message_id
from services.courier.up.verifying import open_letter
from services.kit.devices import DeviceRecord
from services.kit.records import RECORD_TYPE
from services.registry.table import Table
from tests.fuzz.carriers import Carrier
from tests.fuzz.examples import example

CAM = Address("harbour", "cam-1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
"""A day before the examples expire."""
PLATFORM = "01J00000000000000000000000"
SIGNER = Signer.from_seed(bytes(range(32)))
MQTT = b"\x20\x02\x00\x00\x90\x03\x00\x01\x00" + mqtt.publish("cw/1/harbour/cam-1/down/receipt", b"{}") + b"\xd0\x00"
SEAL = X25519PrivateKey.from_private_bytes(bytes(range(32)))


@dataclass(frozen=True)
class Target:
    """One parser."""

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    refusals: tuple[type[Exception], ...] = (ContractError,)
    expected: int = field(default=1)
    """Seeds that must be understood as they are, at least."""


class Book:
    """The courier's device book with one device in it."""

    verifying = Verifier(SIGNER.public_key)

    def verifier(self, address: Address) -> Verifier | None:
        return self.verifying if address == CAM else None

    def get(self, _address: Address) -> DeviceRecord | None:
        return None


def targets() -> dict[str, Target]:
    """All of them by name."""
    carrier = Carrier(PLATFORM, read_parcel(_parcels()[0]), SIGNER)
    heads = tuple(carrier.signed(label) for label in carrier.labels())
    # What chance seldom hits: a key whose name is no text, and a version that no certificate has.
    nameless = heads[0].replace(SIGNER.keyid.encode(), b"\\ud800")
    version = carrier.certificate.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x06")
    found = {
        "envelope": Target(parse, _sealed()),
        "envelope.record": Target(lambda raw: parse(raw, RECORD_TYPE), (seal(b"{}", SIGNER, RECORD_TYPE),)),
        "topic": Target(_topic, (b"cw/1/harbour/cam-1/letter/report", b"cw/1/harbour/all/trust")),
        "message_id": Target(lambda raw: parse_message_id(raw.decode("latin-1")), (b"a:b:c:normal:12",)),
        "piece": Target(read_piece, (write_piece(b"abc"),)),
        "slice": Target(read_slice, (write_slice(b"abc" * 100, Slice(offset=10, length=20)),)),
        "mqtt": Target(_mqtt, (MQTT,), (ConnectionError,)),
        "recipe": Target(read_recipe, (write_recipe([(bytes(32), 100)] * 3),)),
        "trust.pack": Target(open_pack, _packs(), (ContractError, EdgeError)),
        "trust.services": _message(ServicesDocument),
        "trust.announcement": _message(TrustAnnouncement),
        "want": _message(Want),
        "token": _message(Token),
        "bundle.parcel": Target(read_parcel, _parcels()),
        "bundle.head": Target(carrier.judge, (*heads, nameless), (ContractError, EdgeError), 2),
        "bundle.label": Target(
            lambda label: carrier.judge(carrier.signed(label)),
            tuple(carrier.labels()),
            (ContractError, EdgeError),
            2,
        ),
        "bundle.certificate": Target(carrier.vouch, (carrier.certificate, version), (EdgeError,)),
        "bundle.contents": Target(_sealed_contents, _contents()),
        "bundle.letter": Target(_bundle_letter, tuple(base64.b64encode(raw) for raw in _parcels())),
        "neighbour.summary": _frame(frames.Summary),
        "neighbour.answer": _frame(frames.Answer),
        "neighbour.release": _frame(frames.Release),
        "heartbeat.table": Target(_absorb, _state("heartbeat"), ()),
        "update.vector": Target(_vector, (bytes(40), b"\x00\x00\x80\x3f" * 10), (UpdateError, ContractError)),
    }
    for kind in letters.UP_DATA:
        found[f"up.{kind}"] = Target(_open_up(kind), _up(kind))
    for kind in letters.DOWN_DATA:
        found[f"down.{kind}"] = Target(_read(letters.read_down, kind), _down(kind))
    for kind in letters.STATE_DATA:
        found[f"state.{kind}"] = Target(_read(letters.read_state, kind), _state(kind))
    return found


def _message(model: type[Message]) -> Target:
    return Target(model.read, (example(model, full=True), example(model, full=False)))


def _frame(model: type[Message]) -> Target:
    seeds = (example(model, full=True), example(model, full=False))
    return Target(lambda raw: frames.read(model, frames.split(b"S" + raw)[1]), seeds, (EdgeError,))


def _read(reader: Callable[[bytes, str], object], kind: str) -> Callable[[bytes], object]:
    return lambda raw: reader(raw, kind)


def _examples(model: type[Message], kind: str, **fields: str) -> tuple[bytes, ...]:
    found = []
    for full in (True, False):
        document = json.loads(example(model, full=full)) | {"type": f"causeway.{kind}.v1"} | fields
        if "public_key" in document["data"]:
            document["data"]["public_key"] = base64.b64encode(SIGNER.public_key).decode()
        found.append(json.dumps(document).encode())
    return tuple(found)


def _up(kind: str) -> tuple[bytes, ...]:
    return _examples(letters.up_model(kind), kind, recipient=PLATFORM_RECIPIENT, source=CAM.source)


def _down(kind: str) -> tuple[bytes, ...]:
    return _examples(letters.down_model(kind), kind)


def _state(kind: str) -> tuple[bytes, ...]:
    return _examples(letters.state_model(kind), kind)


def _open_up(kind: str) -> Callable[[bytes], object]:
    """Damaged inside a signature that holds, so that what lies behind the signature is reached."""
    subject = topics.Topic(CAM, topics.Channel.LETTER, kind).subject

    def open_up(body: bytes) -> object:
        return open_letter(seal(body, SIGNER), subject, Book(), PLATFORM, NOW)

    return open_up


def _sealed() -> tuple[bytes, ...]:
    return tuple(seal(body, SIGNER) for body in (b"{}", *_up("report")))


def _mqtt(raw: bytes) -> object:
    """What a device reads from its server, in two parts as they come."""
    reader, found = mqtt.PacketReader(), []
    for part in (raw[: len(raw) // 2], raw[len(raw) // 2 :]):
        for packet in reader.feed(part):
            for read in (mqtt.read_connack, mqtt.read_suback, mqtt.read_publish):
                with contextlib.suppress(mqtt.ProtocolError):
                    found.append(read(packet))
    return found


def _topic(raw: bytes) -> object:
    text = raw.decode("latin-1")
    return topics.parse_broadcast(text) or topics.parse_mqtt(text)


def _packs() -> tuple[bytes, ...]:
    bomb = zstandard.compress(b'{"v":1,"head":{"root":1},"files":{"1.root.json":"' + b"a" * 3_000_000)
    return (zstandard.compress(example(TrustPack, full=True)), bomb)


def _parcels() -> tuple[bytes, ...]:
    to = Addressed(PLATFORM, PLATFORM, CAM.source, "/platform", NOW, 60, "normal")
    contents = Contents(letters=[CarriedLetter(kind="event", envelope="x" * 40_000)])
    public = SEAL.public_key().public_bytes_raw()
    return tuple(part.write() for part in write_bundle(contents, to, seal_key=public, signer=SIGNER))


def _contents() -> tuple[bytes, ...]:
    return (example(Contents, full=True), example(Contents, full=False))


def _sealed_contents(body: bytes) -> object:
    """What a device that is enrolled, and hostile, could seal."""
    to = Addressed(PLATFORM, PLATFORM, CAM.source, "/platform", NOW, 60, "normal")
    packed = zlib.compress(body, 1)
    sealed = bundles._SUITE.encrypt(
        packed, SEAL.public_key(), info=bundles._label(PLATFORM, PLATFORM, CAM.source, "/platform")
    )
    parts = [sealed[n : n + bundles.MAX_FRAGMENT_BYTES] for n in range(0, len(sealed), bundles.MAX_FRAGMENT_BYTES)]
    return open_bundle([bundles._parcel(part, n, len(parts), to, SIGNER) for n, part in enumerate(parts)], SEAL)


def _bundle_letter(raw: bytes) -> object:
    letter = bundles.BundleLetter.read(b'{"fragment":"' + raw + b'"}')
    return bundles.bundle_of_letter(letter)


_TABLE = Table()


def _absorb(raw: bytes) -> object:
    """The registry's table must take anything without an error of its own."""
    _TABLE.know(CAM, online=False, now=NOW.timestamp())
    return _TABLE.absorb([(topics.Topic(CAM, topics.Channel.STATE, "heartbeat").subject, raw, NOW.timestamp())])


def _vector(raw: bytes) -> object:
    fields = {
        "vector": base64.b64encode(raw).decode(),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "length": len(raw),
        "samples": 1,
    }
    return open_update(Update.model_construct(**fields), 10)
