"""Where letters go while the disk is full, read-only or broken: memory, in the same tables.

The annex goes on where the file ended: same epoch, next sequences. Back on disk, the sender's letters keep their
places, since they may have been sent; what another process managed to put into the file meanwhile was not sent by
anybody, so it is that which moves behind them. The letters of a process that does not send were seen by nobody, and
what the file took meanwhile may have been sent: they join its end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sqlite3 import Connection

from ulid import ULID

from edge_runtime.letters import shelf
from edge_runtime.letters.boat import LaneRow, Manifest
from edge_runtime.letters.losses import name, note, note_released, released_upto
from edge_runtime.letters.retention import Bounds
from edge_runtime.letters.schema import SCHEMA
from edge_runtime.letters.snapshot import empty_database
from schemas.courier import LossReason
from schemas.events import LANES, Lane

Lanes = Mapping[Lane, tuple[int, int]]

_INSERT = (
    "INSERT INTO letters VALUES (:id, :epoch, :lane, :sequence, :kind, :data, :time, :bytes, :state, :receipted_at, "
    ":born, :latest, :released)"
)


_TO_EPOCH = (
    "UPDATE meta SET value = ? WHERE key = 'epoch'",
    "UPDATE lanes SET epoch = ?",
    "UPDATE letters SET epoch = ?",
    "UPDATE losses SET epoch = ?",
    "UPDATE lost SET epoch = ?",
)


@dataclass(slots=True)
class Annex:
    """Letters in memory.

    Attributes:
        connection: to them.
        file_epoch: epoch that the file was in; None if it could not be read.
        base: highest sequence of each lane that stood in the file.
        offset: of the age clock that its letters go by.
        id: by which the file knows that it was moved back.
    """

    connection: Connection
    file_epoch: str | None
    base: dict[Lane, int]
    offset: float
    id: str

    @classmethod
    def open(cls, epoch: str, lanes: Lanes, file_epoch: str | None, offset: float) -> Annex:
        """An empty one that goes on after `lanes`."""
        connection = _database(epoch, [(epoch, lane, *numbers) for lane, numbers in lanes.items()])
        base = {lane: issued for lane, (issued, _) in lanes.items()}
        return cls(connection, file_epoch, base, offset, str(ULID()))

    @classmethod
    def resume(cls, manifest: Manifest, offset: float) -> Annex:
        """One whose process has ended: its numbers and marks are known, its letters are gone, which is noted."""
        connection = _database(manifest.epoch, manifest.lanes)
        lost = 0
        for epoch, lane, issued, mark in manifest.lanes:
            base = manifest.base.get(lane, 0) if epoch == manifest.file_epoch else 0
            reason: LossReason = "disk" if epoch == manifest.epoch else "renumbered"
            numbers = range(max(mark, base) + 1, issued + 1)
            for sequence in numbers:
                note(connection, epoch, lane, sequence, reason, maybe_arrived=reason == "disk")
            note_released(connection, epoch, lane, issued)
            lost += len(numbers) if reason == "disk" else 0
        connection.execute("INSERT INTO counters VALUES ('dropped', ?)", (lost,))
        return cls(connection, manifest.file_epoch, dict(manifest.base), offset, manifest.annex)

    def manifest(self) -> Manifest:
        """What must outlive the process."""
        rows = self.connection.execute(
            "SELECT epoch, lane, issued, mark FROM lanes WHERE epoch IN (?, ?)", (self.epoch, self.file_epoch)
        )
        return Manifest(
            self.id, self.epoch, self.file_epoch, self.base, [(row[0], row[1], row[2], row[3]) for row in rows]
        )

    @property
    def epoch(self) -> str:
        """Of its letters."""
        return shelf.epoch_of(self.connection)

    def letters(self) -> list[sqlite3.Row]:
        """All of them, by lane and sequence."""
        return self.connection.execute("SELECT * FROM letters ORDER BY epoch, lane, sequence").fetchall()


def _database(epoch: str, lanes: Iterable[LaneRow]) -> Connection:
    connection = empty_database()
    connection.executescript(SCHEMA)
    connection.execute("INSERT INTO meta VALUES ('epoch', ?)", (epoch,))
    connection.executemany("INSERT INTO lanes VALUES (?, ?, ?, ?)", lanes)
    return connection


def move_back(disk: Connection, annex: Annex, offset: float, bounds: Bounds, now: float, settled: str) -> None:
    """Bring everything that the annex holds into the file, in one transaction of the caller.

    Args:
        disk: the file.
        annex: left as it is.
        offset: of the file's age clock.
        bounds: what the file may hold.
        now: seconds since 1970.
        settled: the annex that the boat names, of which nothing is left to be taken over at the next start.
    """
    epoch, memory = annex.epoch, annex.connection
    held = shelf.lanes_of(memory, epoch)
    before = shelf.epoch_of(disk)
    for lane, (issued, _) in shelf.lanes_of(memory, before).items():
        _shift(disk, before, lane, annex.base.get(lane, 0), issued - annex.base.get(lane, 0))
    if before != epoch:
        renumber(disk, epoch, {lane: issued for lane, (issued, _) in held.items()})
    disk.executemany(
        "INSERT INTO lanes VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET issued = max(issued, excluded.issued)",
        [tuple(row) for row in memory.execute("SELECT epoch, lane, issued, 0 FROM lanes")],
    )
    for row in memory.execute("SELECT * FROM released"):
        note_released(disk, *row)
    _bring(disk, annex, offset)
    shelf.receipt(disk, epoch, {lane: mark for lane, (_, mark) in held.items()}, now)
    shelf.shrink(disk, bounds, "evicted")
    disk.execute("INSERT OR REPLACE INTO meta VALUES ('annex', ?)", (settled,))


def join(disk: Connection, annex: Annex, offset: float, bounds: Bounds) -> None:
    """Put what the annex of a process that does not send holds behind everything in the file; arguments as above.

    The annex's numbers change with it, so that it can be tried again.
    """
    memory, epoch = annex.connection, shelf.epoch_of(disk)
    for change in _TO_EPOCH:
        memory.execute(change, (epoch,))
    present = shelf.lanes_of(disk, epoch)
    for lane, (issued, _) in shelf.lanes_of(memory, epoch).items():
        base, end = annex.base.get(lane, 0), present.get(lane, (0, 0))[0]
        _shift(memory, epoch, lane, base, end - base)
        annex.base[lane] = end
        disk.execute(
            "INSERT INTO lanes VALUES (?, ?, ?, 0) ON CONFLICT DO UPDATE SET issued = excluded.issued",
            (epoch, lane, issued + end - base),
        )
    _bring(disk, annex, offset)
    shelf.shrink(disk, bounds, "evicted")


def _bring(disk: Connection, annex: Annex, offset: float) -> None:
    """Letters, losses and counters, at their numbers."""
    memory = annex.connection
    for row in annex.letters():
        if disk.execute("SELECT 1 FROM letters WHERE id = ?", (row["id"],)).fetchone():
            note(disk, row["epoch"], row["lane"], row["sequence"], "renumbered")
            continue
        born = None if row["born"] is None else row["born"] - annex.offset + offset
        disk.execute(_INSERT, dict(row) | {"born": born})
    for row in memory.execute("SELECT * FROM losses"):
        for sequence in range(row["first"], row["last"] + 1):
            _note_again(disk, row, sequence)
    for row in memory.execute("SELECT * FROM lost"):
        name(disk, *row)
    disk.executemany(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
        [tuple(row) for row in memory.execute("SELECT name, value FROM counters")],
    )


def _note_again(disk: Connection, row: sqlite3.Row, sequence: int) -> None:
    note(disk, row["epoch"], row["lane"], sequence, row["reason"], maybe_arrived=bool(row["maybe_arrived"]))


def renumber(connection: Connection, new: str, taken: Mapping[Lane, int], first: str | None = None) -> None:
    """Begin an epoch and give what waits its numbers there, after those `taken`; letter `first` before the others.

    What was receipted stays under its old epoch.
    """
    old = shelf.epoch_of(connection)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (new,))
    for lane in LANES:
        rows = connection.execute(
            "SELECT id, sequence FROM letters WHERE epoch = ? AND lane = ? AND state = 'waiting' "
            "ORDER BY id <> ?, sequence",
            (old, lane, first or ""),
        ).fetchall()
        before, sent = taken.get(lane, 0), released_upto(connection, old, lane)
        for number, row in enumerate(rows, before + 1):
            if row["sequence"] <= sent:
                note_released(connection, new, lane, number)
            note(connection, old, lane, row["sequence"], "renumbered")
            connection.execute("UPDATE letters SET epoch = ?, sequence = ? WHERE id = ?", (new, number, row["id"]))
        if rows:
            connection.execute("INSERT INTO lanes VALUES (?, ?, ?, 0)", (new, lane, before + len(rows)))


def _shift(disk: Connection, epoch: str, lane: Lane, base: int, by: int) -> None:
    """Make room behind `base` for `by` sequences; if that is negative, less of it."""
    if not by:
        return
    where = (epoch, lane, base)
    # By way of negative numbers, since each number may stand but once at any moment.
    disk.execute("UPDATE letters SET sequence = -sequence WHERE epoch = ? AND lane = ? AND sequence > ?", where)
    disk.execute(
        "UPDATE letters SET sequence = ? - sequence WHERE epoch = ? AND lane = ? AND sequence < 0", (by, epoch, lane)
    )
    moved = disk.execute(
        "SELECT * FROM losses WHERE epoch = ? AND lane = ? AND last > ? ORDER BY first", where
    ).fetchall()
    for row in moved[::-1] if by > 0 else moved:
        # Joined over the base: the part below it stays.
        disk.execute("DELETE FROM losses WHERE epoch = ? AND lane = ? AND first = ?", (epoch, lane, row["first"]))
        for sequence in range(row["first"], row["last"] + 1):
            _note_again(disk, row, sequence + (by if sequence > base else 0))
    disk.execute("UPDATE lost SET sequence = -sequence WHERE epoch = ? AND lane = ? AND sequence > ?", where)
    disk.execute(
        "UPDATE lost SET sequence = ? - sequence WHERE epoch = ? AND lane = ? AND sequence < 0", (by, epoch, lane)
    )
    disk.execute("UPDATE lanes SET issued = issued + ? WHERE epoch = ? AND lane = ?", (by, epoch, lane))
