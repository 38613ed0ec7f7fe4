"""Pieces of artifacts that came by folder, kept until what they belong to is in place. Implements `ports.Shelf`."""

from __future__ import annotations

import hashlib
import os
import random
import re
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from edge_runtime.carriers.listing import is_there, some
from schemas.events import MAX_PIECE_BYTES

MAX_RECIPE_BYTES = 4 << 20
"""Recipes lie among the pieces; this one is of 28 GB."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class PieceFolder:
    """`<root>/<aa>/<sha256>`.

    Args:
        root: this device's own, from which pieces are deleted again.
        others: folders of the same layout that are only read, such as a synced directory.
        max_bytes: bound of the own one.
    """

    def __init__(self, root: Path, others: Sequence[Path] = (), max_bytes: int = 0) -> None:
        self._root = root
        self._others = tuple(others)
        self._max_bytes = max_bytes

    def find(self, digests: Sequence[str], limit: int) -> dict[str, bytes]:
        """See `ports.Shelf`."""
        roots = [root for root in (self._root, *self._others) if is_there(root)]
        found: dict[str, bytes] = {}
        for digest in digests if roots else ():
            if len(found) >= limit:
                break
            data = next((data for root in roots if (data := read_piece_file(root, digest)) is not None), None)
            if data is not None:
                found[digest] = data
        return found

    def clear(self, digests: Sequence[str]) -> None:
        """See `ports.Shelf`."""
        if not self._root.is_dir():
            return
        for digest in digests:
            piece_path(self._root, digest).unlink(missing_ok=True)

    def holds(self, digest: str) -> bool:
        """Whether a piece lies in the own folder."""
        return piece_path(self._root, digest).is_file()

    def put(self, digest: str, data: bytes) -> None:
        """Keep a piece. It proves itself, so that a torn one is only missing; `os.sync` makes many durable at once.

        Raises:
            OSError: if the disk does not do its part.
        """
        path = piece_path(self._root, digest)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{digest}.new")
        temporary.write_bytes(data)
        temporary.replace(path)

    def trim(self) -> int:
        """Delete the oldest beyond the bound; returns how many went.

        Raises:
            OSError: if the disk does not do its part.
        """
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in piece_files(self._root))
        excess, gone = sum(size for _, size, _ in files) - self._max_bytes, 0
        for _, size, path in files:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess, gone = excess - size, gone + 1
        return gone

    def room(self) -> int:
        """Bytes that may still be put."""
        return max(0, self._max_bytes - sum(path.stat().st_size for path in piece_files(self._root)))


def piece_path(root: Path, digest: str) -> Path:
    """Where a piece lies."""
    return root / digest[:2] / digest


def piece_files(root: Path) -> Iterator[Path]:
    """Every file that is named like a piece, of crowded folders some; in an order by chance. Raises OSError."""
    for first in random.sample(range(256), 256) if root.is_dir() else ():
        prefix = f"{first:02x}"
        paths = some([root / prefix], partial(_is_piece, prefix)).paths
        yield from random.sample(paths, len(paths))


def _is_piece(prefix: str, entry: os.DirEntry[str]) -> bool:
    return bool(_DIGEST.fullmatch(entry.name)) and entry.name.startswith(prefix)


def read_piece_file(root: Path, digest: str) -> bytes | None:
    """A piece or a recipe, if it is there and is what it is named."""
    try:
        data = read_bounded(piece_path(root, digest), max(MAX_PIECE_BYTES, MAX_RECIPE_BYTES))
    except OSError:
        return None
    return data if data is not None and hashlib.sha256(data).hexdigest() == digest else None


def read_bounded(path: Path, limit: int) -> bytes | None:
    """A regular file of at most so many bytes; None for what is none. Follows no link out of the folder.

    Raises:
        OSError: if it cannot be read, now at least.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > limit:
            return None
        data = file.read(limit + 1)
    return data if len(data) <= limit else None
