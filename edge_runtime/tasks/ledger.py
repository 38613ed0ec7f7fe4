"""What came of each task on this device, so that a term has one result letter whatever crashes in between.

SQLite `tasks.db`, one row per (task, term): `letter` is the id of its result letter, given before anything runs;
`result` is stored before it is sent, `sent` after the outbox took it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ulid import ULID

from edge_runtime.letters.database import Database
from schemas.scheduler import Result

KEEP_S = 3 * 86_400.0
"""Longer than a task letter lives (a day) and may come again."""
MAX_KEPT = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    task TEXT NOT NULL, term INTEGER NOT NULL, letter TEXT NOT NULL, at REAL NOT NULL,
    result TEXT, sent INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (task, term)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tasks_by_age ON tasks (sent, at);
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One term of one task."""

    task: str
    term: int
    letter: str
    result: Result | None
    sent: bool
    cancelled: bool


class Ledger:
    """Durable and bounded. Every method raises OutboxError if the disk does not do its part."""

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        """`now`: seconds since 1970."""
        self._now = now
        self._database = Database(path, _SCHEMA)

    def open(self, task: str, term: int) -> Line:
        """The line of a term, made if there is none."""
        with self._database.write("note a task") as connection:
            connection.execute(
                "INSERT INTO tasks (task, term, letter, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (task, term, str(ULID()), self._now()),
            )
        return self._lines("task = ? AND term = ?", (task, term))[0]

    def finish(self, line: Line, result: Result) -> Line:
        """Store the result, once; a result that is there already stays."""
        with self._database.write("note a result") as connection:
            connection.execute(
                "UPDATE tasks SET result = ? WHERE task = ? AND term = ? AND result IS NULL",
                (result.model_dump_json(exclude_none=True), line.task, line.term),
            )
        return self._lines("task = ? AND term = ?", (line.task, line.term))[0]

    def sent(self, line: Line) -> None:
        """The outbox has the result."""
        with self._database.write("note a sent result") as connection:
            connection.execute(
                "UPDATE tasks SET sent = 1, result = '' WHERE task = ? AND term = ?", (line.task, line.term)
            )

    def cancel(self, task: str, term: int) -> None:
        """Note that a term is not wanted; also before its letter has come."""
        self.open(task, term)
        with self._database.write("cancel a task") as connection:
            connection.execute("UPDATE tasks SET cancelled = 1 WHERE task = ? AND term = ?", (task, term))

    def unsent(self) -> list[Line]:
        """Results that the outbox does not have yet."""
        return self._lines("sent = 0 AND result IS NOT NULL", ())

    def trim(self) -> None:
        """Forget what cannot come again, and the oldest beyond the bound."""
        with self._database.write("trim the tasks") as connection:
            connection.execute("DELETE FROM tasks WHERE at < ?", (self._now() - KEEP_S,))
            connection.execute(
                "DELETE FROM tasks WHERE sent = 1 AND at < "
                "(SELECT at FROM tasks WHERE sent = 1 ORDER BY at DESC LIMIT 1 OFFSET ?)",
                (MAX_KEPT,),
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _lines(self, where: str, parameters: tuple[object, ...]) -> list[Line]:
        rows = self._database.read(f"SELECT * FROM tasks WHERE {where} ORDER BY at", parameters)  # noqa: S608 - our own
        return [
            Line(
                task=row["task"],
                term=row["term"],
                letter=row["letter"],
                result=Result.model_validate_json(row["result"]) if row["result"] else None,
                sent=bool(row["sent"]),
                cancelled=bool(row["cancelled"]),
            )
            for row in rows
        ]
