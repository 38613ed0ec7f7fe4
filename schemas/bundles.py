"""Bundles: signed letters on their way through strangers' hands (after RFC 9171, Bundle Protocol 7).

A bundle is made by its origin (a device or the courier), sealed to its destination (HPKE, RFC 9180), cut into fragments
that each fit into a letter, and handed from carrier to carrier. A carrier sees head and way, never the contents.

    fragment = b"CWB1" | uint32 length of head | head | uint32 length of way | way | payload

The head is a DSSE envelope by the origin and binds the payload by digest. The way is written anew by every carrier and
is not signed: whoever falsifies it can only make his own copy travel less or longer, within the bounds below.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from pydantic import AwareDatetime, Field, StringConstraints

from schemas.courier import MAX_GOT, Hello
from schemas.envelope import Envelope, Signer, parse, seal
from schemas.errors import MessageError
from schemas.events import PLATFORM_RECIPIENT, Lane, Message, Source
from schemas.ids import Base64, Digest, Ulid, Word

BUNDLE_TYPE = "application/vnd.causeway.bundle+json"
"""Payload type of heads, so that no letter passes for a head, nor a head for a letter."""
MAX_HOPS = 7
MAX_COPIES = 4
MAX_LIFETIME_S = 30 * 86_400
MAX_FRAGMENT_BYTES = 24 * 1_024
"""Of payload; with its head and in base64 twice it still fits into a letter of 64 KiB."""
MAX_FRAGMENTS = 64
MAX_SEALED_BYTES = MAX_FRAGMENT_BYTES * MAX_FRAGMENTS
MAX_CONTENTS_BYTES = 4 << 20
MAX_CARRIED = 512
MAX_ACKNOWLEDGED = 128
MAX_CERTIFICATE_CHARS = 2_048
MAX_FRAME_BYTES = 48 * 1_024
_MAGIC = b"CWB1"
_LENGTH = struct.Struct(">I")
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class Fragment(Message):
    """Which part of the sealed contents this is."""

    index: Annotated[int, Field(ge=0, lt=MAX_FRAGMENTS)] = 0
    count: Annotated[int, Field(ge=1, le=MAX_FRAGMENTS)] = 1
    sha256: Digest
    """Of this fragment's payload."""


class BundleHead(Message):
    """What the origin signs about one fragment."""

    v: Literal[1] = 1
    id: Ulid
    """Of the whole bundle; its fragments share it."""
    platform: Ulid
    origin: Source
    """A device, or `/services/courier`."""
    destination: Source
    """`/platform`, or a device."""
    created: AwareDatetime
    lifetime_s: Annotated[int, Field(ge=1, le=MAX_LIFETIME_S)]
    """Counted by the ages that its carriers add up, since not every carrier has a clock."""
    priority: Lane
    fragment: Fragment
    acknowledges: Annotated[list[Ulid], Field(max_length=MAX_ACKNOWLEDGED)] = []
    """Bundles of the destination whose contents the courier has stored: every carrier may let its copies go."""
    certificate: Annotated[Base64, Field(max_length=MAX_CERTIFICATE_CHARS)] | None = None
    """Of a device, DER: so that carriers who never met it can tell its heads from forged ones."""


class Way(Message):
    """How far a copy has come; written anew by each carrier."""

    hops: Annotated[int, Field(ge=0, le=MAX_HOPS)] = 0
    copies: Annotated[int, Field(ge=1, le=MAX_COPIES)] = MAX_COPIES
    """How many copies its holder may still bring into being, its own included (Spyropoulos 2005, spray and wait)."""
    age_s: Annotated[float, Field(ge=0, le=2 * MAX_LIFETIME_S)] = 0.0


class CarriedLetter(Message):
    """A letter as it would travel over the bus."""

    kind: Word
    envelope: Annotated[str, StringConstraints(min_length=1, max_length=65_536)]
    """The DSSE envelope's JSON text."""


class Contents(Message):
    """What the destination finds inside."""

    hello: Hello | None = None
    """Up: what the device holds and issued, so that the answer fits; its session is the device's carried one."""
    got: Annotated[list[Ulid], Field(max_length=MAX_GOT)] = []
    letters: Annotated[list[CarriedLetter], Field(max_length=MAX_CARRIED)] = []
    """Up in the order of each lane; down with receipts among them (kind `receipt`)."""
    trust: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=349_528)] | None = None
    """Down: a trust pack (zstd), base64."""


class BundleLetter(Message):
    """Data of a letter `bundle`: a fragment of somebody else, handed over by a carrier that has a link."""

    fragment: Base64


@dataclass(frozen=True, slots=True)
class Parcel:
    """One fragment with its way.

    Attributes:
        head: what the origin signed, parsed but not verified.
        envelope: the signed form of the head.
        way: as the last carrier wrote it.
        payload: part of the sealed contents; its digest was compared with the head's.
    """

    head: BundleHead
    envelope: Envelope
    head_bytes: bytes
    way: Way
    payload: bytes

    @property
    def key(self) -> tuple[str, int]:
        """Names this fragment everywhere: bundle id and index."""
        return self.head.id, self.head.fragment.index

    def on_its_way(self, *, hops: int, copies: int, age_s: float) -> Parcel:
        """The same fragment with another way."""
        return replace(self, way=Way(hops=hops, copies=copies, age_s=age_s))

    def write(self) -> bytes:
        """The frame that travels."""
        way = self.way.write()
        return b"".join(
            (_MAGIC, _LENGTH.pack(len(self.head_bytes)), self.head_bytes, _LENGTH.pack(len(way)), way, self.payload)
        )


@dataclass(frozen=True, slots=True)
class Addressed:
    """Who sends a bundle to whom, and how long it may take."""

    bundle_id: str
    platform: str
    origin: str
    destination: str
    created: datetime
    lifetime_s: int
    priority: Lane
    acknowledges: tuple[str, ...] = ()
    certificate: str | None = None


def write_bundle(contents: Contents, to: Addressed, *, seal_key: bytes, signer: Signer) -> list[Parcel]:
    """Seal, cut and sign.

    Args:
        contents: what only the destination shall read.
        to: the address label.
        seal_key: X25519 public key of the destination, 32 bytes.
        signer: of the origin.

    Raises:
        MessageError: `oversized` if the sealed contents exceed 1.5 MiB; put fewer letters into one bundle.
            `bad_seal_key` as `check_seal_key`.
    """
    packed = zlib.compress(contents.write(), 6)
    sealed = _encrypt(packed, seal_key, _label(to.bundle_id, to.platform, to.origin, to.destination))
    if len(sealed) > MAX_SEALED_BYTES:
        raise MessageError(f"bundle of {len(sealed)} sealed bytes exceeds {MAX_SEALED_BYTES}", reason="oversized")
    parts = [sealed[start : start + MAX_FRAGMENT_BYTES] for start in range(0, len(sealed), MAX_FRAGMENT_BYTES)]
    return [_parcel(part, index, len(parts), to, signer) for index, part in enumerate(parts)]


def check_seal_key(seal_key: bytes) -> None:
    """Refuse what has the form of a key and cannot be sealed to, as a point of low order (RFC 7748, 6.1).

    Raises:
        MessageError: `bad_seal_key`.
    """
    _encrypt(b"", seal_key, b"")


def read_parcel(frame: bytes) -> Parcel:
    """Parse one fragment; its signature is not checked yet (`Parcel.envelope.verify`).

    Raises:
        ContractError: `oversized`, `bad_envelope`, `malformed`, or `wrong_digest` if the payload is not the head's.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise MessageError(f"fragment of {len(frame)} bytes exceeds {MAX_FRAME_BYTES}", reason="oversized")
    if frame[:4] != _MAGIC:
        raise MessageError("not a fragment of a bundle: it does not begin with CWB1")
    head_bytes, rest = _take(frame, 4)
    way_bytes, rest = _take(frame, rest)
    payload = frame[rest:]
    if len(payload) > MAX_FRAGMENT_BYTES:
        raise MessageError(f"payload of {len(payload)} bytes exceeds {MAX_FRAGMENT_BYTES}", reason="oversized")
    envelope = parse(head_bytes, BUNDLE_TYPE)
    head = BundleHead.read(envelope.body)
    if head.fragment.index >= head.fragment.count:
        raise MessageError(f"fragment {head.fragment.index} of {head.fragment.count} of bundle {head.id}")
    if hashlib.sha256(payload).hexdigest() != head.fragment.sha256:
        raise MessageError(f"payload of bundle {head.id} is not what its origin signed", reason="wrong_digest")
    return Parcel(head, envelope, head_bytes, Way.read(way_bytes), payload)


def open_bundle(parcels: Sequence[Parcel], private_key: X25519PrivateKey) -> Contents:
    """Join all fragments of one bundle, whose signatures were checked, and read what is inside.

    Raises:
        MessageError: `incomplete`, `wrong_seal` if it was sealed to another key or altered, `oversized` or `malformed`.
    """
    head = parcels[0].head if parcels else None
    by_index = {parcel.head.fragment.index: parcel.payload for parcel in parcels}
    if head is None or len(by_index) != head.fragment.count:
        raise MessageError("some fragments of the bundle are missing", reason="incomplete")
    sealed = b"".join(by_index[index] for index in sorted(by_index))
    try:
        packed = _SUITE.decrypt(sealed, private_key, info=_label(head.id, head.platform, head.origin, head.destination))
    except (InvalidTag, ValueError) as error:
        raise MessageError(
            f"bundle {head.id} of {head.origin} is not sealed to this key, or was altered", reason="wrong_seal"
        ) from error
    return Contents.read(_inflate(packed))


def whole(parcels: Sequence[Parcel]) -> bool:
    """Whether these fragments of one bundle are all of it."""
    return bool(parcels) and len({parcel.head.fragment.index for parcel in parcels}) == parcels[0].head.fragment.count


def bundle_to_letter(parcel: Parcel) -> BundleLetter:
    """What a carrier with a link puts into its own letter."""
    return BundleLetter(fragment=base64.b64encode(parcel.write()).decode())


def bundle_of_letter(letter: BundleLetter) -> Parcel:
    """The fragment that a carrier's letter brings. Raises as `read_parcel`."""
    try:
        frame = base64.b64decode(letter.fragment, validate=True)
    except ValueError as error:
        raise MessageError("the fragment is not base64") from error
    return read_parcel(frame)


def to_platform(head: BundleHead) -> bool:
    """Whether the courier is the destination."""
    return head.destination == PLATFORM_RECIPIENT


def _parcel(part: bytes, index: int, count: int, to: Addressed, signer: Signer) -> Parcel:
    head = BundleHead(
        id=to.bundle_id,
        platform=to.platform,
        origin=to.origin,
        destination=to.destination,
        created=to.created,
        lifetime_s=to.lifetime_s,
        priority=to.priority,
        fragment=Fragment(index=index, count=count, sha256=hashlib.sha256(part).hexdigest()),
        acknowledges=list(to.acknowledges),
        certificate=to.certificate,
    )
    head_bytes = seal(head.write(), signer, BUNDLE_TYPE)
    return Parcel(head, parse(head_bytes, BUNDLE_TYPE), head_bytes, Way(), part)


def _encrypt(packed: bytes, seal_key: bytes, info: bytes) -> bytes:
    try:
        return _SUITE.encrypt(packed, X25519PublicKey.from_public_bytes(seal_key), info=info)
    except ValueError as error:
        raise MessageError(
            "nothing can be sealed to this X25519 public key: let its device make another and enrol with it",
            reason="bad_seal_key",
        ) from error


def _label(bundle_id: str, platform: str, origin: str, destination: str) -> bytes:
    return json.dumps(["causeway bundle v1", platform, bundle_id, origin, destination]).encode()


def _take(frame: bytes, at: int) -> tuple[bytes, int]:
    if len(frame) < at + _LENGTH.size:
        raise MessageError("a fragment of a bundle ends too early")
    (length,) = _LENGTH.unpack_from(frame, at)
    end = at + _LENGTH.size + length
    if len(frame) < end:
        raise MessageError("a fragment of a bundle ends too early")
    return frame[at + _LENGTH.size : end], end


def _inflate(packed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, MAX_CONTENTS_BYTES)
    except zlib.error as error:
        raise MessageError(f"the contents of a bundle cannot be unpacked: {error}") from error
    if not inflater.eof:
        raise MessageError(f"the contents of a bundle exceed {MAX_CONTENTS_BYTES} bytes", reason="oversized")
    return plain
