from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from ulid import ULID

from schemas.envelope import Signer, Verifier, parse, seal
from schemas.errors import ContractError
from schemas.events import Message
from schemas.ids import Address
from schemas.letters import Place, write_up
from schemas.registry import Capabilities, Enrol, EventReport
from schemas.topics import Channel, Topic
from services.courier.up.verifying import open_letter
from services.kit.devices import DeviceRecord, Standing

ADDRESS = Address("harbour", "cam-1")
PLATFORM, EPOCH = str(ULID()), str(ULID())
NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEY, OTHER = Signer.generate(), Signer.generate()
CAPABILITIES = Capabilities(os="linux", arch="x86", python="3", agent="t", cpu_count=1, ram_mb=1, disk_mb=1)


class Book:
    """The device book with one device in it."""

    def __init__(self, key: Signer | None = KEY, standing: Standing = "enrolled") -> None:
        self._key = key
        self._standing = standing

    def verifier(self, address: Address) -> Verifier | None:
        known = self._key is not None and address == ADDRESS and self._standing == "enrolled"
        return Verifier(self._key.public_key) if known and self._key else None

    def get(self, address: Address) -> DeviceRecord | None:
        if self._key is None or address != ADDRESS:
            return None
        text = base64.b64encode(self._key.public_key).decode()
        return DeviceRecord(
            fleet=address.fleet,
            device=address.device,
            public_key=text,
            seal_key=text,
            standing=self._standing,
            capabilities=CAPABILITIES,
            enrol_id=EPOCH,
            bus_key="U",
            jwt_issued=0,
            jwt_expires=0,
            enrolled_at="",
        )


def write(
    kind: str = "event",
    data: Message | None = None,
    *,
    signer: Signer = KEY,
    address: Address = ADDRESS,
    platform: str = PLATFORM,
    sequence: int = 1,
    floor: int = 1,
    lifetime_s: float = 60,
) -> bytes:
    return write_up(
        kind,
        data or EventReport(name="test", message="hello"),
        Place(EPOCH, "normal", sequence, floor),
        letter_id=str(ULID()),
        address=address,
        platform=platform,
        time=NOW,
        expires=NOW + timedelta(seconds=lifetime_s),
        signer=signer,
    )


def subject(kind: str = "event", address: Address = ADDRESS) -> str:
    return Topic(address, Channel.LETTER, kind).subject


def test_a_good_letter_opens_with_its_place_and_its_bytes() -> None:
    raw = write(sequence=7, floor=3)
    opened = open_letter(raw, subject(), Book(), PLATFORM, NOW)
    assert (opened.address, opened.kind, opened.envelope) == (ADDRESS, "event", raw)
    assert (opened.slip.sequence, opened.slip.floor, opened.slip.key.epoch) == (7, 3, EPOCH)
    assert opened.refusal is None
    assert not opened.stranger


@pytest.mark.parametrize(
    ("reason", "raw", "book"),
    [
        ("unknown_key", lambda: write(signer=OTHER), Book()),
        ("wrong_source", lambda: write(address=Address("harbour", "cam-2")), Book()),
        ("wrong_platform", lambda: write(platform=EPOCH), Book()),
        ("expired", lambda: write(lifetime_s=0), Book()),
        ("malformed", lambda: write(sequence=2, floor=3), Book()),
        ("wrong_kind", lambda: write("report"), Book()),
        ("malformed", lambda: seal(b'{"type":"causeway.event.v1"}', KEY), Book()),
        ("wrong_kind", lambda: seal(b"no json", KEY), Book()),
        ("bad_envelope", lambda: b"", Book()),
        ("oversized", lambda: b" " * 70_000, Book()),
        ("unknown_device", write, Book(None)),
        ("revoked", write, Book(standing="revoked")),
        ("quarantined", write, Book(standing="quarantined")),
    ],
)
def test_each_forgery_has_its_reason(reason: str, raw: Callable[[], bytes], book: Book) -> None:
    with pytest.raises(ContractError) as raised:
        open_letter(raw(), subject(), book, PLATFORM, NOW)
    assert raised.value.reason == reason


def test_every_changed_byte_of_the_payload_is_noticed() -> None:
    raw = bytearray(write())
    start = raw.index(b'"payload":"') + 11
    for position in range(start, start + 200, 7):
        changed = bytes(raw[:position]) + bytes([raw[position] ^ 1]) + bytes(raw[position + 1 :])
        with pytest.raises(ContractError) as raised:
            open_letter(changed, subject(), Book(), PLATFORM, NOW)
        assert raised.value.reason in {"bad_signature", "bad_envelope"}


@pytest.mark.parametrize(
    ("old", "new", "reason"), [("hello", "x" * 600, "malformed"), (".v1", ".v2", "unsupported_version")]
)
def test_what_no_repetition_can_mend_is_set_aside_with_its_number(old: str, new: str, reason: str) -> None:
    body = parse(write(sequence=4)).body.replace(old.encode(), new.encode(), 1)
    opened = open_letter(seal(body, KEY), subject(), Book(), PLATFORM, NOW)
    assert opened.refusal is not None
    assert opened.refusal.reason == reason
    assert opened.slip.sequence == 4


def enrol(brought: Signer) -> Enrol:
    text = base64.b64encode(brought.public_key).decode()
    return Enrol(public_key=text, seal_key=text, capabilities=CAPABILITIES)


def test_an_enrol_letter_proves_itself_and_nothing_else() -> None:
    first = open_letter(write("enrol", enrol(OTHER), signer=OTHER), subject("enrol"), Book(None), PLATFORM, NOW)
    assert not first.stranger
    renewal = open_letter(write("enrol", enrol(KEY)), subject("enrol"), Book(), PLATFORM, NOW)
    assert not renewal.stranger
    again = open_letter(write("enrol", enrol(OTHER), signer=OTHER), subject("enrol"), Book(), PLATFORM, NOW)
    assert again.stranger
    # Nor does a revoked device's silence make room for others in its epochs.
    revoked = Book(standing="revoked")
    assert open_letter(write("enrol", enrol(OTHER), signer=OTHER), subject("enrol"), revoked, PLATFORM, NOW).stranger
    assert not open_letter(write("enrol", enrol(KEY)), subject("enrol"), revoked, PLATFORM, NOW).stranger
    with pytest.raises(ContractError) as raised:
        open_letter(write("enrol", enrol(KEY), signer=OTHER), subject("enrol"), Book(), PLATFORM, NOW)
    assert raised.value.reason == "unknown_key"
