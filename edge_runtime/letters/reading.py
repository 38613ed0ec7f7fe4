"""What the outbox's tables say to whoever sends: runs above a mark, and the letters in them. Queries alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from sqlite3 import Connection, Row

from edge_runtime.letters.retention import Gap, floor_of
from edge_runtime.letters.sending import Run
from schemas.events import Lane


@dataclass(frozen=True, slots=True)
class Stored:
    """A letter as the outbox holds it."""

    id: str
    epoch: str
    lane: Lane
    sequence: int
    floor: int
    kind: str
    data: str
    time: float


def first_run(connection: Connection, epoch: str, lane: Lane, mark: int, issued: int) -> Run | None:
    """First gapless run of held letters above a mark, among sequences up to `issued`."""
    first = connection.execute(
        "SELECT min(sequence) FROM letters WHERE epoch = ? AND lane = ? AND sequence > ? AND sequence <= ?",
        (epoch, lane, mark, issued),
    ).fetchone()[0]
    if first is None:
        return None
    gap = connection.execute(
        "SELECT min(first) FROM losses WHERE epoch = ? AND lane = ? AND first > ?", (epoch, lane, first)
    ).fetchone()[0]
    return Run(int(first), issued if gap is None else min(issued, int(gap) - 1))


def rows_of(connection: Connection, epoch: str, lane: Lane, run: Run) -> list[Row]:
    """Letters of a run that are here."""
    return connection.execute(
        "SELECT * FROM letters WHERE epoch = ? AND lane = ? AND sequence BETWEEN ? AND ? ORDER BY sequence",
        (epoch, lane, run.first, run.last),
    ).fetchall()


def lowest(connection: Connection, epoch: str, lane: Lane) -> int | None:
    """Lowest sequence of a lane that is here."""
    found: int | None = connection.execute(
        "SELECT min(sequence) FROM letters WHERE epoch = ? AND lane = ?", (epoch, lane)
    ).fetchone()[0]
    return found


def gap_below(connection: Connection, epoch: str, lane: Lane, sequence: int) -> Gap | None:
    """The last range below a sequence that was given up."""
    row = connection.execute(
        "SELECT first, last FROM losses WHERE epoch = ? AND lane = ? AND first < ? ORDER BY first DESC LIMIT 1",
        (epoch, lane, sequence),
    ).fetchone()
    return None if row is None else Gap(row["first"], row["last"])


def letters_of(rows: Iterable[Row], run: Run, lowest_held: int, gaps: list[Gap]) -> list[Stored]:
    """Letters with the floors that they are to be signed with, up to the first that is missing.

    What went since the run was looked up ends it: the floor of what lies behind would have the courier skip letters
    that it may still get.
    """
    found: list[Stored] = []
    for expected, row in enumerate(rows, run.first):
        if row["sequence"] != expected:
            break
        found.append(
            Stored(
                id=row["id"],
                epoch=row["epoch"],
                lane=row["lane"],
                sequence=expected,
                floor=floor_of(expected, lowest_held, gaps),
                kind=row["kind"],
                data=row["data"],
                time=row["time"],
            )
        )
    return found
