"""SQLite as the device uses it: durable, shared by threads and processes, and with errors that say what to do."""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.errors import OutboxError
from edge_runtime.letters.snapshot import empty_database, open_snapshot, readable
from edge_runtime.logs import Log

log = Log(__name__)

BUSY_TIMEOUT_S = 10.0
CACHE_KB = 512
PAGE_BYTES = 1_024
"""Of new files: a letter dirties five pages, and each of them goes to the flash."""
CHECKPOINT_PAGES = 2_000
"""Of the write-ahead log; about as many bytes as SQLite's own default."""
REOPEN_AFTER_S = 1.0
"""How often a write may try whether a disk that failed at the opening works by now."""
DISK_REASONS = frozenset({"disk_full", "read_only", "disk_failed", "damaged"})
"""Of an OutboxError: the disk does not do its part. `busy` and others are not its fault."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
Upgrade = Callable[[sqlite3.Connection], None]
Mend = Callable[[sqlite3.Connection], bool]
"""Puts right, in one transaction of its own, rows that no program of this version wrote; True if there were any."""


class Database:
    """One WAL database; a transaction is on disk when it returns (`synchronous=FULL`).

    If the disk is full or read-only at the opening, the file is read as it stands, and each write tries to open it
    properly before it fails.

    Args:
        path: of the file.
        schema: statements that make what is absent.
        upgrade: brings a file of an earlier version up to the schema, which is applied behind it; what it changes, it
            changes in one transaction of its own.
        mend: looks through the rows: a file may be of a later version, torn, or changed by somebody.
        looks: whether it does so at each opening, which reads the whole file.

    Raises:
        OutboxError: `disk_full`, `read_only`, `disk_failed`, `damaged`, `busy` or `outbox`, from every method.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        upgrade: Upgrade = lambda _: None,
        mend: Mend = lambda _: False,
        *,
        looks: bool = True,
    ) -> None:
        self.path = path
        self._schema = schema
        self._upgrade = upgrade
        self._mend = mend
        self._looks = looks
        self._lock = threading.RLock()
        self._refused: OutboxError | None = None
        self._tried_at = 0.0
        try:
            self._connection = self._open()
        except OutboxError as error:
            if error.reason not in {"disk_full", "read_only", "disk_failed"}:
                raise
            self._connection = self._look(error)

    @contextmanager
    def write(self, what: str) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on disk when the block ends, or none of it."""
        with self._lock:
            if self._refused is not None:
                self._reopen(what)
            with self._explained(what), transaction(self._connection) as connection:
                yield connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for several queries."""
        with self._lock, self._explained("read"):
            yield self._connection

    def read(self, query: str, parameters: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        """Rows of a query."""
        with self._lock, self._explained("read"):
            return self._connection.execute(query, parameters).fetchall()

    def mend(self) -> bool:
        """Look through the rows again; True if some were put right."""
        with self._lock, self._explained("mend torn rows"):
            return self._mend(self._connection)

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

    def _open(self) -> sqlite3.Connection:
        with self._explained("open"):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600)
            connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                readable(connection)
                connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute(f"PRAGMA cache_size=-{CACHE_KB}")
                connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            return connection

    def _look(self, refused: OutboxError) -> sqlite3.Connection:
        try:
            connection = open_snapshot(self.path)
        except (sqlite3.Error, OSError) as error:
            problem = _explain(self.path, "read", error)
            if problem.reason == "damaged":
                raise problem from error
            # What the file holds is out of sight until it can be opened; nothing can be stored until then either.
            connection = empty_database()
        with self._explained("read"):
            self._prepare(connection)
        self._refused, self._tried_at = refused, time.monotonic()
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self._upgrade(connection)
        connection.executescript(self._schema)
        if self._looks:
            try:
                self._mend(connection)
            except Exception as error:  # noqa: BLE001 - a damaged page, a full disk: as good as before
                log.unexpected("database.not_mended", error, path=str(self.path))

    def _reopen(self, what: str) -> None:
        assert self._refused is not None
        if time.monotonic() >= self._tried_at + REOPEN_AFTER_S:
            self._tried_at = time.monotonic()
            try:
                connection = self._open()
            except OutboxError as error:
                self._refused = error
            else:
                self._connection.close()
                self._connection, self._refused = connection, None
                return
        raise OutboxError(f"{what}: {self._refused}", reason=self._refused.reason)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise _explain(self.path, what, error) from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All of a block or none of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _explain(path: Path, what: str, error: sqlite3.Error | OSError) -> OutboxError:
    text = str(error) or type(error).__name__
    code, number = getattr(error, "sqlite_errorname", ""), getattr(error, "errno", None)
    if code == "SQLITE_FULL" or "full" in text or number in _FULL:
        return OutboxError(
            f"{what} in {path}: the disk is full; free some space on it, or lower outbox.max_bytes in the settings",
            reason="disk_full",
        )
    if code.startswith("SQLITE_READONLY") or number in _FORBIDDEN or "unable to open" in text:
        return OutboxError(
            f"{what} in {path}: not writable ({text}); let the user that runs the agent own the state folder",
            reason="read_only",
        )
    if code in {"SQLITE_CORRUPT", "SQLITE_NOTADB"}:
        return OutboxError(
            f"{what} in {path}: the file is damaged ({text}); move it away, the agent makes a new one and a new epoch",
            reason="damaged",
        )
    if code.startswith("SQLITE_IOERR") or number is not None:
        return OutboxError(
            f"{what} in {path}: the disk fails ({text}); look at the system's log, and replace it if it is worn out",
            reason="disk_failed",
        )
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return OutboxError(
            f"{what} in {path}: another process holds it for more than {BUSY_TIMEOUT_S:.0f} s; end what blocks it",
            reason="busy",
        )
    return OutboxError(f"{what} in {path}: {text}; it is tried again at the next turn")
