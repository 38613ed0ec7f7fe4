"""Artifacts in a folder: `sha256/ab/<digest>`, written whole, fsynced, then renamed into place."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from services.kit.artifacts.port import StoreError, check_digest, copy_hashing, object_name
from services.kit.folder import make_private, sync_folder


class FolderStore:
    """The adapter for one machine, or for a shared file system.

    Args:
        root: folder that holds `sha256/`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put_file(self, path: Path) -> str:
        """Store a file."""
        return await asyncio.to_thread(self._put_file, path)

    async def put(self, data: bytes) -> str:
        """Store bytes."""
        return await asyncio.to_thread(self._put, io.BytesIO(data), f"of {len(data)} bytes")

    async def length(self, sha256: str) -> int | None:
        """Size, or None."""
        path = self._path(sha256)
        with _explained("look up", sha256, self._root):
            return path.stat().st_size if path.is_file() else None

    async def open_range(self, sha256: str, offset: int, length: int) -> bytes:
        """Read a part."""
        return await asyncio.to_thread(self._read, sha256, offset, length)

    async def fetch(self, sha256: str, destination: Path) -> None:
        """Copy to a file, verifying."""
        await asyncio.to_thread(self._fetch, sha256, destination)

    def _path(self, sha256: str) -> Path:
        return self._root / Path(object_name(sha256)).relative_to("artifacts")

    def _put_file(self, path: Path) -> str:
        with _explained("put", str(path), self._root), path.open("rb") as source:
            return self._put(source, str(path))

    def _put(self, source: BinaryIO, what: str) -> str:
        with _explained("put", what, self._root):
            folder = make_private(self._root / "sha256")
            handle, name = tempfile.mkstemp(dir=folder, prefix=".incoming-")
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    digest, _ = copy_hashing(source, file)
                    file.flush()
                    os.fsync(file.fileno())
                final = self._path(digest)
                make_private(final.parent)
                # Replaces what is there, so that storing it again heals a damaged file.
                temporary.replace(final)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(final.parent)
            sync_folder(folder)
            return digest

    def _read(self, sha256: str, offset: int, length: int) -> bytes:
        with _explained("read", sha256, self._root), self._path(sha256).open("rb") as file:
            data = os.pread(file.fileno(), length, offset) if offset >= 0 and length > 0 else b""
        if len(data) != length or not data:
            raise StoreError("read", sha256, "out_of_range", f"it has no {length} bytes at {offset}; is it damaged?")
        return data

    def _fetch(self, sha256: str, destination: Path) -> None:
        with _explained("fetch", sha256, self._root), self._path(sha256).open("rb") as source:
            try:
                with destination.open("wb") as file:
                    check_digest(sha256, copy_hashing(source, file)[0])
            except BaseException:
                destination.unlink(missing_ok=True)
                raise


@contextmanager
def _explained(operation: str, artifact: str, root: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        step = f"store it first (looked in {root})"
        raise StoreError(operation, artifact, "not_found", step) from error
    except PermissionError as error:
        step = f"let this user read and write {root}"
        raise StoreError(operation, artifact, "access_denied", step) from error
    except OSError as error:
        reason = "disk_full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "failed"
        raise StoreError(operation, artifact, reason, f"{error.strerror or error} in {root}") from error
