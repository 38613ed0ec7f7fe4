"""SQLite as the device uses it: durable, shared by threads and processes, and with errors that say what to do."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.errors import EdgeError, OutboxError

BUSY_TIMEOUT_S = 10.0
CACHE_KB = 512


class Database:
    """One WAL database; a transaction is on disk when it returns (`synchronous=FULL`).

    Raises:
        OutboxError: `disk_full`, `read_only`, `damaged` or `outbox`, from every method.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._explained("open"):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(f"PRAGMA cache_size=-{CACHE_KB}")
            self._connection.executescript(schema)

    @contextmanager
    def write(self, what: str) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on disk when the block ends, or none of it."""
        with self._lock, self._explained(what):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def read(self, query: str, parameters: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        """Rows of a query."""
        with self._lock, self._explained("read"):
            return self._connection.execute(query, parameters).fetchall()

    def limit_pages(self, pages: int) -> None:
        """Let the file grow no further than this, as a full disk would."""
        self.read(f"PRAGMA max_page_count={pages}")

    def pages(self) -> int:
        """Size of the file in pages."""
        return int(self.read("PRAGMA page_count")[0][0])

    def close(self) -> None:
        """Close; later calls fail."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise _explain(self.path, what, error) from error


def _explain(path: Path, what: str, error: sqlite3.Error | OSError) -> EdgeError:
    text = str(error)
    code = getattr(error, "sqlite_errorname", "")
    if code == "SQLITE_FULL" or "full" in text or getattr(error, "errno", None) == 28:
        return OutboxError(
            f"{what} in {path}: the disk is full; free some space on it, or lower outbox.max_bytes in the settings",
            reason="disk_full",
        )
    if code.startswith("SQLITE_READONLY") or isinstance(error, PermissionError) or "unable to open" in text:
        return OutboxError(
            f"{what} in {path}: not writable ({text}); let the user that runs the agent own the state folder",
            reason="read_only",
        )
    if code in {"SQLITE_CORRUPT", "SQLITE_NOTADB"}:
        return OutboxError(
            f"{what} in {path}: the file is damaged ({text}); move it away, the agent makes a new one and a new epoch",
            reason="damaged",
        )
    return OutboxError(f"{what} in {path}: {text or type(error).__name__}; it is tried again at the next turn")
