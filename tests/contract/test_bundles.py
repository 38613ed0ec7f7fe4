"""Bundles: what goes in comes out at its destination only, whole and unaltered, and nothing else is believed."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import struct
import zlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from schemas import bundles
from schemas.bundles import (
    BUNDLE_TYPE,
    MAX_CONTENTS_BYTES,
    MAX_FRAGMENT_BYTES,
    MAX_FRAGMENTS,
    MAX_FRAME_BYTES,
    Addressed,
    BundleLetter,
    CarriedLetter,
    Contents,
    Parcel,
    bundle_of_letter,
    bundle_to_letter,
    check_seal_key,
    open_bundle,
    read_parcel,
    to_platform,
    whole,
    write_bundle,
)
from schemas.envelope import MAX_LETTER_BYTES, PAYLOAD_TYPE, Signer, Verifier, parse, seal
from schemas.errors import ContractError, EnvelopeError, MessageError
from schemas.events import Untyped
from schemas.ids import Address
from schemas.letters import Place, write_up

SIGNER = Signer.from_seed(bytes(range(32)))
KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
NOW = datetime(2026, 5, 1, tzinfo=UTC)


def label(**changes: object) -> Addressed:
    plain = Addressed(
        bundle_id=str(ULID()),
        platform=str(ULID()),
        origin="/fleets/home/devices/cam-1",
        destination="/platform",
        created=NOW,
        lifetime_s=3_600,
        priority="normal",
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def letters(amount: int, size: int) -> Contents:
    """Letters of random, so that they do not shrink."""
    return Contents(
        letters=[
            CarriedLetter(kind="event", envelope=base64.b64encode(os.urandom(size)).decode()) for _ in range(amount)
        ]
    )


@given(
    texts=st.lists(st.text(min_size=1, max_size=200), max_size=20),
    got=st.lists(st.integers(0, 2**64).map(lambda n: str(ULID.from_int(n))), max_size=10),
)
def test_contents_survive_the_journey(texts: list[str], got: list[str]) -> None:
    contents = Contents(got=got, letters=[CarriedLetter(kind="event", envelope=text) for text in texts])
    frames = [parcel.write() for parcel in write_bundle(contents, label(), seal_key=PUBLIC, signer=SIGNER)]
    parcels = [read_parcel(frame) for frame in frames]
    assert whole(parcels)
    assert open_bundle(parcels, KEY) == contents
    assert all(parcel.envelope.verify({SIGNER.keyid: Verifier(SIGNER.public_key)}) for parcel in parcels)


@given(hops=st.integers(0, 7), copies=st.integers(1, 4), age_s=st.floats(0, 5_000_000))
def test_a_carrier_changes_the_way_and_nothing_else(hops: int, copies: int, age_s: float) -> None:
    (parcel,) = write_bundle(letters(1, 10), label(), seal_key=PUBLIC, signer=SIGNER)
    moved = read_parcel(parcel.on_its_way(hops=hops, copies=copies, age_s=age_s).write())
    assert (moved.way.hops, moved.way.copies, moved.way.age_s) == (hops, copies, age_s)
    assert (moved.head, moved.payload, moved.key) == (parcel.head, parcel.payload, parcel.key)
    assert to_platform(moved.head)


def test_large_contents_travel_in_fragments_that_each_fit_into_a_letter() -> None:
    contents = letters(60, 12_000)
    parcels = write_bundle(contents, label(), seal_key=PUBLIC, signer=SIGNER)
    assert len(parcels) > 20
    assert not whole(parcels[1:])
    with pytest.raises(MessageError) as refused:
        open_bundle(parcels[1:], KEY)
    assert refused.value.reason == "incomplete"
    for parcel in parcels:
        assert len(parcel.write()) <= MAX_FRAME_BYTES
        letter = bundle_to_letter(parcel)
        place = Place(str(ULID()), "bulk", 2**53, 2**53)
        raw = write_up(
            "bundle",
            Untyped.model_validate(letter.model_dump()),
            place,
            letter_id=str(ULID()),
            address=Address("f" * 63, "d" * 63),
            platform=str(ULID()),
            time=NOW,
            expires=NOW,
            signer=SIGNER,
        )
        assert len(raw) <= MAX_LETTER_BYTES
        assert bundle_of_letter(letter) == parcel
    assert open_bundle(list(reversed(parcels)), KEY) == contents


def test_more_than_a_bundle_holds_is_refused_before_it_is_sent() -> None:
    with pytest.raises(MessageError) as refused:
        write_bundle(letters(50, 45_000), label(), seal_key=PUBLIC, signer=SIGNER)
    assert refused.value.reason == "oversized"


@given(at=st.integers(0, 1_999), flip=st.integers(1, 255))
def test_no_altered_byte_goes_unnoticed(at: int, flip: int) -> None:
    """Whatever byte is changed: the frame is refused, or the head does not verify, or only the way differs."""
    (parcel,) = write_bundle(letters(3, 100), label(), seal_key=PUBLIC, signer=SIGNER)
    frame = bytearray(parcel.write())
    frame[at % len(frame)] ^= flip
    try:
        found = read_parcel(bytes(frame))
        found.envelope.verify({SIGNER.keyid: Verifier(SIGNER.public_key)})
    except ContractError:
        return
    assert (found.head, found.payload) == (parcel.head, parcel.payload)


@pytest.mark.parametrize("field", ["id", "platform", "origin", "destination"])
def test_the_label_is_bound_to_the_seal(field: str) -> None:
    """A head that somebody else signs anew around the same payload opens nothing."""
    told = label()
    (parcel,) = write_bundle(letters(1, 10), told, seal_key=PUBLIC, signer=SIGNER)
    other = {
        "id": str(ULID()),
        "platform": str(ULID()),
        "origin": "/fleets/home/devices/thief",
        "destination": "/fleets/home/devices/thief",
    }
    thief = Signer.generate()
    head = parcel.head.model_copy(update={field: other[field]})
    raw = seal(head.write(), thief, BUNDLE_TYPE)
    forged = Parcel(head, parse(raw, BUNDLE_TYPE), raw, parcel.way, parcel.payload)
    assert read_parcel(forged.write()).head == head
    with pytest.raises(MessageError) as refused:
        open_bundle([forged], KEY)
    assert refused.value.reason == "wrong_seal"


def test_only_the_destination_can_open() -> None:
    parcels = write_bundle(letters(1, 10), label(), seal_key=PUBLIC, signer=SIGNER)
    with pytest.raises(MessageError) as refused:
        open_bundle(parcels, X25519PrivateKey.generate())
    assert refused.value.reason == "wrong_seal"


def test_a_letter_does_not_pass_for_a_head_nor_a_head_for_a_letter() -> None:
    (parcel,) = write_bundle(letters(1, 10), label(), seal_key=PUBLIC, signer=SIGNER)
    raw = seal(parcel.head.write(), SIGNER, PAYLOAD_TYPE)
    with pytest.raises(EnvelopeError):
        read_parcel(dataclasses.replace(parcel, head_bytes=raw).write())
    with pytest.raises(EnvelopeError):
        parse(parcel.head_bytes)
    # The type is signed too: a changed one does not hold.
    fields = json.loads(raw)
    fields["payloadType"] = BUNDLE_TYPE
    found = read_parcel(dataclasses.replace(parcel, head_bytes=json.dumps(fields).encode()).write())
    with pytest.raises(EnvelopeError) as refused:
        found.envelope.verify({SIGNER.keyid: Verifier(SIGNER.public_key)})
    assert refused.value.reason == "bad_signature"


def sealed(plain: bytes) -> list[Parcel]:
    """A bundle of an origin that keeps to nothing."""
    told = label()
    info = bundles._label(told.bundle_id, told.platform, told.origin, told.destination)
    payload = bundles._SUITE.encrypt(plain, X25519PublicKey.from_public_bytes(PUBLIC), info=info)
    (parcel,) = write_bundle(letters(1, 10), told, seal_key=PUBLIC, signer=SIGNER)
    fragment = parcel.head.fragment.model_copy(update={"sha256": hashlib.sha256(payload).hexdigest()})
    head = parcel.head.model_copy(update={"fragment": fragment})
    raw = seal(head.write(), SIGNER, BUNDLE_TYPE)
    return [read_parcel(Parcel(head, parse(raw, BUNDLE_TYPE), raw, parcel.way, payload).write())]


def test_a_zip_bomb_ends_at_its_bound() -> None:
    bomb = zlib.compress(b'{"letters":[]' + b" " * (32 << 20) + b"}", 9)
    assert len(bomb) > MAX_FRAGMENT_BYTES  # as one fragment it would not even arrive
    with pytest.raises(MessageError) as refused:
        open_bundle(sealed(zlib.compress(b" " * (MAX_CONTENTS_BYTES + 1), 9)), KEY)
    assert refused.value.reason == "oversized"
    with pytest.raises(MessageError):
        open_bundle(sealed(b"no zlib"), KEY)
    with pytest.raises(MessageError):
        open_bundle(sealed(zlib.compress(b'{"letters": 7}')), KEY)
    with pytest.raises(MessageError):
        open_bundle(sealed(zlib.compress(b"{}")[:-3]), KEY)


@given(raw=st.binary(max_size=300))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    for frame in (raw, b"CWB1" + raw, b"CWB1" + struct.pack(">I", len(raw)) + raw):
        with pytest.raises(ContractError):
            read_parcel(frame)
    with pytest.raises(ContractError):
        bundle_of_letter(BundleLetter.model_construct(fragment=raw.decode("latin1")))


def test_bounds_hold() -> None:
    (parcel,) = write_bundle(letters(1, 10), label(), seal_key=PUBLIC, signer=SIGNER)
    with pytest.raises(MessageError) as refused:
        read_parcel(parcel.write() + bytes(MAX_FRAME_BYTES))
    assert refused.value.reason == "oversized"
    big = os.urandom(MAX_FRAGMENT_BYTES + 1)
    with pytest.raises(MessageError) as refused:
        read_parcel(dataclasses.replace(parcel, payload=big).write())
    assert refused.value.reason == "oversized"
    for fragment in ({"index": MAX_FRAGMENTS}, {"count": MAX_FRAGMENTS + 1}, {"index": 1, "count": 1}):
        body = json.loads(parcel.head.write())
        body["fragment"] |= fragment
        raw = seal(json.dumps(body).encode(), SIGNER, BUNDLE_TYPE)
        with pytest.raises(MessageError):
            read_parcel(dataclasses.replace(parcel, head_bytes=raw).write())
    for way in (b'{"hops": 8}', b'{"copies": 0}', b'{"copies": 5}', b'{"age_s": -1}', b'{"age_s": "NaN"}'):
        frame = parcel.write()
        start = 8 + len(parcel.head_bytes)
        rest = start + 4 + struct.unpack(">I", frame[start : start + 4])[0]
        with pytest.raises(MessageError):
            read_parcel(frame[:start] + struct.pack(">I", len(way)) + way + frame[rest:])


@pytest.mark.parametrize(
    "key",
    [
        bytes(32),
        bytes([1, *bytes(31)]),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        bytes(31),
    ],
)
def test_a_key_that_nothing_can_be_sealed_to_is_refused_by_name(key: bytes) -> None:
    with pytest.raises(MessageError) as caught:
        write_bundle(letters(1, 10), label(), seal_key=key, signer=SIGNER)
    assert caught.value.reason == "bad_seal_key"
    with pytest.raises(MessageError, match="enrol"):
        check_seal_key(key)
    check_seal_key(PUBLIC)
