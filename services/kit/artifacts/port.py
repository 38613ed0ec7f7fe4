"""What every artifact store does, and the one error that it raises."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import BinaryIO, Protocol

from services.kit.errors import PlatformError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 20


class StoreError(PlatformError):
    """An artifact could not be stored or read.

    Attributes:
        operation: what was tried: `put`, `read`, `fetch` or `look up`.
        artifact: its digest, or the file that was to be stored.
        reason: `not_found`, `damaged`, `access_denied`, `out_of_range`, `disk_full`, `unreachable` or `failed`.
    """

    code = "store"

    def __init__(self, operation: str, artifact: str, reason: str, next_step: str) -> None:
        super().__init__(
            f"{operation} artifact {artifact}: {reason.replace('_', ' ')}; {next_step}",
            code="not_found" if reason == "not_found" else None,
        )
        self.operation = operation
        self.artifact = artifact
        self.reason = reason


class Readable(Protocol):
    """An open file, or the body of a response."""

    def read(self, amt: int, /) -> bytes:
        """At most so many bytes; empty at the end."""


class ArtifactStore(Protocol):
    """Bytes by digest. Every method raises `StoreError`, with the cause kept."""

    async def put_file(self, path: Path) -> str:
        """Store a file; whole and durable when this returns its sha256. Storing it again is harmless."""

    async def put(self, data: bytes) -> str:
        """Same with bytes in memory."""

    async def length(self, sha256: str) -> int | None:
        """Size in bytes; None if the store does not have it."""

    async def open_range(self, sha256: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on; not verified, since a part has no digest here."""

    async def fetch(self, sha256: str, destination: Path) -> None:
        """Write the whole artifact to a file, verified by its digest; nothing is left of a failed attempt."""


def object_name(sha256: str) -> str:
    """Place of an artifact below the store's root.

    Raises:
        StoreError: if it is not a digest, which could name any path.
    """
    if not _DIGEST.fullmatch(sha256):
        raise StoreError("look up", repr(sha256[:80]), "not_found", "name an artifact by 64 lower-case hex digits")
    return f"artifacts/sha256/{sha256[:2]}/{sha256}"


def copy_hashing(source: Readable, destination: BinaryIO | None) -> tuple[str, int]:
    """Read a stream to its end, in blocks, optionally into another.

    Returns:
        sha256 in hex, and the length.
    """
    digest = hashlib.sha256()
    length = 0
    while block := source.read(_BLOCK):
        digest.update(block)
        length += len(block)
        if destination is not None:
            destination.write(block)
    return digest.hexdigest(), length


def check_digest(expected: str, got: str) -> None:
    """Refuse an artifact whose bytes are not what its name says.

    Raises:
        StoreError: `damaged`.
    """
    if got != expected:
        raise StoreError("fetch", expected, "damaged", f"its bytes have {got}; store the file again")
