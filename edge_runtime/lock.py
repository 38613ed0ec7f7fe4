"""One agent per state folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.errors import ConfigError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the folder's lock; it goes with the process, however that ends.

    Raises:
        ConfigError: if another process holds it, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = _open(path)
    except OSError as error:
        raise ConfigError(
            f"lock {path}: {error.strerror}; let the user that runs the agent own the state folder"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"lock {path}: another agent (process {_holder(descriptor)}) runs on this state folder; "
                "stop it, or use another folder"
            ) from error
        # Who holds it is a help for people; on a full disk they do without.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in {errno.EROFS, errno.ENOSPC, errno.EDQUOT}:
            raise
    # Nothing can be written here at present; what cannot be written can be locked all the same.
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)


def _holder(descriptor: int) -> str:
    written = b"" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.pread(descriptor, 32, 0)
    return written.decode(errors="replace").strip() or "unknown"
