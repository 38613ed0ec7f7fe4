"""Cutting an artifact into pieces where its content says so (FastCDC, Xia 2016), so that versions share pieces."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastcdc import fastcdc

from schemas.aggregator import Artifact
from schemas.depot import RECIPE_ENTRY_BYTES, write_recipe
from schemas.events import MAX_PIECE_BYTES
from services.kit.errors import RefusedError

KIB = 1 << 10
MIN_BYTES, AVERAGE_BYTES, MAX_BYTES = 16 * KIB, 64 * KIB, 256 * KIB
CONTENT_DEFINED_UP_TO = 256 * KIB * KIB
"""Above, pieces have a fixed 256 KiB: a recipe must fit into one piece, which bounds an artifact to 1.9 GB."""
MAX_PIECES = MAX_PIECE_BYTES // RECIPE_ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Recipe:
    """An artifact cut into pieces.

    Attributes:
        sha256: of the whole artifact.
        length: its bytes.
        raw: the recipe object, 36 bytes per piece.
        pieces: how many.
    """

    sha256: str
    length: int
    raw: bytes
    pieces: int

    @property
    def digest(self) -> str:
        """sha256 of the recipe object, which names it."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def artifact(self) -> Artifact:
        """As letters name it."""
        return Artifact(sha256=self.sha256, length=self.length, recipe=self.digest, pieces=self.pieces)


def cut(path: Path) -> Recipe:
    """Cut a file; it is mapped, never read into memory whole. The same bytes always give the same recipe.

    Raises:
        RefusedError: if it is empty, or too large for a recipe of one piece.
        OSError: if it cannot be read.
    """
    length = path.stat().st_size
    if not 1 <= length <= MAX_PIECES * MAX_BYTES:
        raise RefusedError(
            f"cut {path.name} of {length} bytes into pieces: an artifact has 1 to {MAX_PIECES * MAX_BYTES} bytes"
        )
    whole = hashlib.sha256()
    entries: list[tuple[bytes, int]] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for offset, size in _bounds(mapped, length):
            piece = mapped[offset : offset + size]
            whole.update(piece)
            entries.append((hashlib.sha256(piece).digest(), size))
    if len(entries) > MAX_PIECES:
        raise RefusedError(f"cut {path.name} into pieces: it makes {len(entries)}, a recipe holds {MAX_PIECES}")
    return Recipe(whole.hexdigest(), length, write_recipe(entries), len(entries))


def _bounds(mapped: mmap.mmap, length: int) -> Iterator[tuple[int, int]]:
    if length > CONTENT_DEFINED_UP_TO:
        for offset in range(0, length, MAX_BYTES):
            yield offset, min(MAX_BYTES, length - offset)
        return
    for chunk in fastcdc(mapped, MIN_BYTES, AVERAGE_BYTES, MAX_BYTES):
        yield chunk.offset, chunk.length
