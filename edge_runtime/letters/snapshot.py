"""Reads a database whose disk is full or read-only: SQLite itself wants to write before it reads a WAL file."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path


def empty_database() -> sqlite3.Connection:
    """A database in memory."""
    return readable(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))


def readable(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Rows by name; bytes that are no text are replaced, since one flipped bit must not hide all other rows."""
    connection.row_factory = sqlite3.Row
    connection.text_factory = lambda raw: raw.decode(errors="replace")
    return connection


def open_snapshot(path: Path) -> sqlite3.Connection:
    """The file as it stands, in memory; empty if there is none.

    Raises:
        sqlite3.Error: if it cannot be read.
        OSError: if it cannot be read, or what its log holds fits into no temporary folder.
    """
    memory = empty_database()
    try:
        if path.exists() and path.stat().st_size:
            log = path.with_name(f"{path.name}-wal")
            if log.exists() and log.stat().st_size:
                _copy_with_log(path, log, memory)
            else:
                _copy(f"{path.absolute().as_uri()}?immutable=1", memory)
    except BaseException:
        memory.close()
        raise
    return memory


def _copy_with_log(path: Path, log: Path, memory: sqlite3.Connection) -> None:
    """What was committed last stands in the log alone, and is read only where the log may be recovered."""
    with tempfile.TemporaryDirectory(prefix="causeway-") as folder:
        for file in (path, log):
            shutil.copyfile(file, Path(folder) / file.name)
        _copy((Path(folder) / path.name).as_uri(), memory)


def _copy(uri: str, memory: sqlite3.Connection) -> None:
    source = sqlite3.connect(uri, uri=True)
    try:
        source.backup(memory)
    finally:
        source.close()
