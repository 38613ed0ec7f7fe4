"""The file in which an artifact comes together: what is right in it, what is missing, and why it cannot be written."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.errors import FetchError
from schemas.aggregator import Artifact

_BLOCK = 1 << 20

Places = dict[str, tuple[list[int], int]]
"""Offsets and length of each piece, by digest."""


def scan(descriptor: int, places: Places) -> list[str]:
    """Pieces of which some copy in the file is wrong, in the order of the recipe."""
    return [
        digest
        for digest, (offsets, length) in places.items()
        if any(hashlib.sha256(os.pread(descriptor, length, offset)).hexdigest() != digest for offset in offsets)
    ]


def holds(path: Path, artifact: Artifact) -> bool:
    """Whether a file is the artifact, whole."""
    try:
        if path.stat().st_size != artifact.length:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == artifact.sha256


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def explained(artifact: Artifact, destination: Path) -> Iterator[None]:
    """Turn what the disk says into a FetchError."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise FetchError(
            f"fetch artifact {artifact.sha256} into {destination}: {error.strerror}" + ("; make room" if full else ""),
            reason="disk_full" if full else "fetch",
        ) from error
