"""Messages of the depot: parcels prove themselves and are not CloudEvents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from schemas.errors import MessageError
from schemas.events import MAX_PIECE_BYTES, Message
from schemas.ids import Count, Digest, Identifier

MAX_WANT = 32
MAX_TRUST_BYTES = 262_144
MAX_TRUST_EXPANDED_BYTES = 1_048_576
TRUST_FILE = r"^([0-9]+\.)?[A-Za-z0-9_-]+\.json$"

RECIPE_ENTRY_BYTES = 36
SLICE_HEAD_BYTES = 40


class TrustState(Message):
    """Versions of the trust metadata that a device holds; 0 for none."""

    root: Count
    timestamp: Count = 0
    snapshot: Count = 0
    targets: Count = 0
    roles: Annotated[dict[Identifier, Count], Field(max_length=128)] = {}


class Slice(Message):
    """A part of a piece."""

    offset: Annotated[int, Field(ge=0, le=MAX_PIECE_BYTES)]
    length: Annotated[int, Field(ge=1, le=MAX_PIECE_BYTES)]


class Want(Message):
    """What a device asks the depot for; exactly one of the three.

    Attributes:
        pieces: digests of pieces of the artifact whose recipe is `recipe`.
        recipe: alone, asks for the recipe itself.
        slice: of one piece, or of the recipe, only this part; for links on which the whole would take long.
        trust: asks for the trust pack that is newer than this.
    """

    pieces: Annotated[list[Digest], Field(max_length=MAX_WANT)] = []
    recipe: Digest | None = None
    slice: Slice | None = None
    trust: TrustState | None = None


class TrustPack(Message):
    """Metadata files by name. Unsigned: TUF metadata proves itself. Travels as zstd of this JSON."""

    v: Literal[1] = 1
    head: TrustState
    files: Annotated[
        dict[
            Annotated[str, StringConstraints(pattern=TRUST_FILE, max_length=80)],
            Annotated[str, StringConstraints(max_length=MAX_TRUST_EXPANDED_BYTES)],
        ],
        Field(max_length=256),
    ]


class TrustAnnouncement(Message):
    """To all: there is a newer timestamp; ask within `spread_s`, at a random moment."""

    timestamp: Count
    spread_s: Annotated[float, Field(ge=0, le=3_600)]


def write_piece(data: bytes) -> bytes:
    """A piece on its way: 32 bytes of sha256, then the bytes.

    Raises:
        MessageError: above 256 KiB.
    """
    if len(data) > MAX_PIECE_BYTES:
        raise MessageError(f"piece of {len(data)} bytes exceeds {MAX_PIECE_BYTES}", reason="oversized")
    return hashlib.sha256(data).digest() + data


def read_piece(raw: bytes) -> tuple[str, bytes]:
    """Digest in hex and bytes of a piece.

    Raises:
        MessageError: `wrong_digest` if the bytes are not what they claim, `oversized` above 256 KiB.
    """
    if not 32 <= len(raw) <= 32 + MAX_PIECE_BYTES:
        raise MessageError(f"piece of {len(raw)} bytes is out of bounds", reason="oversized")
    claimed, data = raw[:32], raw[32:]
    actual = hashlib.sha256(data).digest()
    if actual != claimed:
        raise MessageError(
            f"piece claims sha256 {claimed.hex()} but its {len(data)} bytes have {actual.hex()}",
            reason="wrong_digest",
        )
    return claimed.hex(), data


@dataclass(frozen=True, slots=True)
class PieceSlice:
    """Part of a piece on its way: 32 bytes of the whole's sha256, offset and length of the whole as uint32 LE, bytes.

    It proves nothing by itself; only the whole does.
    """

    digest: str
    offset: int
    total: int
    data: bytes


def write_slice(piece: bytes, part: Slice) -> bytes:
    """The part of a piece that a device asked for; empty behind its end."""
    data = piece[part.offset : part.offset + part.length]
    head = hashlib.sha256(piece).digest()
    return head + part.offset.to_bytes(4, "little") + len(piece).to_bytes(4, "little") + data


def read_slice(raw: bytes) -> PieceSlice:
    """Take a slice apart.

    Raises:
        MessageError: `oversized` if it is none, or longer than a piece may be.
    """
    if not SLICE_HEAD_BYTES <= len(raw) <= SLICE_HEAD_BYTES + MAX_PIECE_BYTES:
        raise MessageError(f"slice of {len(raw)} bytes is out of bounds", reason="oversized")
    offset, total = int.from_bytes(raw[32:36], "little"), int.from_bytes(raw[36:40], "little")
    data = raw[SLICE_HEAD_BYTES:]
    if total > MAX_PIECE_BYTES or offset + len(data) > total:
        raise MessageError(f"slice at {offset} of a piece of {total} bytes is out of bounds", reason="oversized")
    return PieceSlice(raw[:32].hex(), offset, total, data)


class RecipeEntry(Message):
    """One piece of an artifact."""

    sha256: Digest
    length: Annotated[int, Field(ge=1, le=MAX_PIECE_BYTES)]


def write_recipe(entries: list[tuple[bytes, int]]) -> bytes:
    """36 bytes per piece, in order: sha256, then the length as uint32 little-endian."""
    return b"".join(digest + length.to_bytes(4, "little") for digest, length in entries)


def read_recipe(raw: bytes) -> list[RecipeEntry]:
    """Pieces of an artifact, in order.

    Raises:
        MessageError: if the bytes are not a recipe.
    """
    if not raw or len(raw) % RECIPE_ENTRY_BYTES:
        raise MessageError(f"recipe of {len(raw)} bytes is not a multiple of {RECIPE_ENTRY_BYTES}")
    entries = []
    for start in range(0, len(raw), RECIPE_ENTRY_BYTES):
        length = int.from_bytes(raw[start + 32 : start + 36], "little")
        if not 1 <= length <= MAX_PIECE_BYTES:
            raise MessageError(f"recipe has a piece of {length} bytes, allowed are 1 to {MAX_PIECE_BYTES}")
        entries.append(RecipeEntry(sha256=raw[start : start + 32].hex(), length=length))
    return entries
