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
from random import Random
from sqlite3 import Connection

from ulid import ULID

from edge_runtime.letters import shelf
from edge_runtime.letters.boat import LaneRow, Manifest
from edge_runtime.letters.database import transaction
from edge_runtime.letters.losses import name, note, note_released, released_upto
from edge_runtime.letters.retention import Bounds
from edge_runtime.letters.schema import SCHEMA
from edge_runtime.letters.snapshot import empty_database
from schemas.courier import LossReason
from schemas.events import LANES, Lane

Lanes = Mapping[Lane, tuple[int, int]]

APART = (1 << 10, 1 << 16)
"""How many numbers are passed over where nothing tells how many an earlier process gave; more than a window of letters
on their way, and by chance, so that two processes in a row hardly ever give the same."""

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
        apart: its numbers begin at a distance, and are told to nobody but the file.
    """

    connection: Connection
    file_epoch: str | None
    base: dict[Lane, int]
    offset: float
    id: str
    apart: bool = False

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
            first = max(mark, base) + 1
            if first <= issued:
                note(connection, epoch, lane, first, reason, last=issued, maybe_arrived=reason == "disk")
                lost += issued - first + 1 if reason == "disk" else 0
            note_released(connection, epoch, lane, issued)
        connection.execute("INSERT INTO counters VALUES ('dropped', ?)", (lost,))
        return cls(connection, manifest.file_epoch, dict(manifest.base), offset, manifest.annex)

    def keep_apart(self, chance: Random) -> None:
        """Give no number that an earlier process may have given in memory, of whose letters some may be on their way.

        What it passes over belongs to nobody here: a mark in it speaks of such a letter.
        """
        self.apart = True
        epoch = self.epoch
        lanes = shelf.lanes_of(self.connection, epoch)
        with transaction(self.connection) as connection:
            for lane in LANES:
                issued, mark = lanes.get(lane, (0, 0))
                last = issued + chance.randrange(*APART)
                connection.execute("INSERT OR REPLACE INTO lanes VALUES (?, ?, ?, ?)", (epoch, lane, last, mark))
                note(connection, epoch, lane, issued + 1, "renumbered", last=last)

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


def join(disk: Connection, annex: Annex, offset: float, bounds: Bounds, reason: LossReason = "evicted") -> None:
    """Put what the annex of a process that does not send holds behind everything in the file; arguments as above.

    The annex's numbers change with it, so that it can be tried again. `disk` may be another annex; what does not fit
    is given up for `reason`.
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
    shelf.shrink(disk, bounds, reason)


def _bring(disk: Connection, annex: Annex, offset: float) -> None:
    """Letters, losses and counters, at their numbers."""
    memory = annex.connection
    for row in annex.letters():
        if disk.execute("SELECT 1 FROM letters WHERE id = ?", (row["id"],)).fetchone():
            note(disk, row["epoch"], row["lane"], row["sequence"], "renumbered")
            name(disk, row["epoch"], row["lane"], row["sequence"], row["id"], row["kind"])
            continue
        born = None if row["born"] is None else row["born"] - annex.offset + offset
        disk.execute(_INSERT, dict(row) | {"born": born})
    for row in memory.execute("SELECT * FROM losses"):
        _note_again(disk, row, row["first"], row["last"])
    for row in memory.execute("SELECT * FROM lost"):
        name(disk, *row)
    disk.executemany(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
        [tuple(row) for row in memory.execute("SELECT name, value FROM counters")],
    )


def _note_again(disk: Connection, row: sqlite3.Row, first: int, last: int) -> None:
    maybe = bool(row["maybe_arrived"])
    note(disk, row["epoch"], row["lane"], first, row["reason"], last=last, maybe_arrived=maybe)


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
        _note_again(disk, row, max(row["first"], base + 1) + by, row["last"] + by)
        if row["first"] <= base:
            _note_again(disk, row, row["first"], base)
    disk.execute("UPDATE lost SET sequence = -sequence WHERE epoch = ? AND lane = ? AND sequence > ?", where)
    disk.execute(
        "UPDATE lost SET sequence = ? - sequence WHERE epoch = ? AND lane = ? AND sequence < 0", (by, epoch, lane)
    )
    disk.execute("UPDATE lanes SET issued = issued + ? WHERE epoch = ? AND lane = ?", (by, epoch, lane))
