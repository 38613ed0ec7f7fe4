"""The outbox: every letter up, from its first moment until some time after its receipt. The ledger of this device.

Its tables are described in `schema`. A letter is signed when it is sent, since its floor may move; its identity is its
`id`. While the disk does not do its part, letters go to memory (`annex`), and back as soon as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Literal

from ulid import ULID

from edge_runtime.errors import OutboxError
from edge_runtime.letters import losses, reading, shelf
from edge_runtime.letters.ages import Elapsed, since_boot
from edge_runtime.letters.annex import renumber
from edge_runtime.letters.drafts import Entry, draft
from edge_runtime.letters.reading import Stored
from edge_runtime.letters.retention import Amount
from edge_runtime.letters.sending import Run
from edge_runtime.letters.shelf import New
from edge_runtime.letters.store import Part, Room, Store
from edge_runtime.settings import OutboxLimits
from schemas.courier import LossReason
from schemas.events import Lane, Message

TRIM_BATCH = 500
RELEASE_AHEAD = 512
"""Letters that count as sent a little before they are, so that not every sending writes to the flash."""

Storage = Literal["disk", "memory"]

__all__ = ["Entry", "Outbox", "OutboxSummary", "Storage", "Stored"]


@dataclass(frozen=True, slots=True)
class OutboxSummary:
    """Figures for heartbeat and status.

    Attributes:
        waiting: for a receipt.
        kept: receipted.
        dropped: given up by bounds, age or a failing disk.
        refused: not accepted, since this process started.
        superseded: replaced by newer ones of the same kind and key.
        storage: where new letters go.
        problem: why not to the disk.
    """

    waiting: Amount
    kept: Amount
    dropped: int
    refused: int
    superseded: int = 0
    storage: Storage = "disk"
    problem: str | None = None


class Outbox:
    """Durable letters up; safe to use from several threads and processes, of which one sends.

    Nothing is ever half done. What only looks raises OutboxError if the disk cannot be read.

    Args:
        path: of the file.
        limits: bounds; what is given up because of them is noted (`losses`).
        now: seconds since 1970, from the device's clock.
        elapsed: the clock that ages go by.
        sends: whether this is the one process that sends; what its last life had in memory is accounted for.

    Raises:
        OutboxError: `damaged` or `busy`; a disk that is full, read-only or broken is no error here.
    """

    def __init__(
        self,
        path: Path,
        limits: OutboxLimits,
        now: Callable[[], float],
        elapsed: Elapsed = since_boot,
        *,
        sends: bool = False,
    ) -> None:
        self._now = now
        self._store = Store(path, limits, now, elapsed, sends=sends)
        self.database = self._store.database
        self._refused_here = 0

    @property
    def epoch(self) -> str:
        """The present epoch."""
        return self._store.lanes()[0]

    @property
    def storage(self) -> Storage:
        """Where new letters go."""
        return "disk" if self._store.annex is None else "memory"

    def add(
        self, kind: str, data: Message, lane: Lane, letter_id: str | None = None, *, latest: str | None = None
    ) -> str:
        """Store a letter; it is on disk when this returns, unless the disk does not do its part (`storage`).

        Args:
            kind: of the letter.
            data: what it says.
            lane: its lane.
            letter_id: its ULID; one that is here already is not stored again.
            latest: a key; letters of this kind and key that wait and cannot have been sent yet are given up for it.

        Returns:
            The letter's ULID.

        Raises:
            OutboxError: `oversized`, `malformed`, `outbox_full` or `busy`; the letter was not accepted.
        """
        return self.add_many([Entry(kind, data, lane, letter_id, latest)])[0]

    def add_many(self, entries: Sequence[Entry]) -> list[str]:
        """Store letters in one transaction, all or none; see `add`."""
        try:
            letters = [draft(entry, self._now()) for entry in entries]
            with self._store.lock:
                self._store.bring_back(patient=True)
                self._put(letters)
        except OutboxError:
            self._refused_here += len(entries)
            raise
        return [letter.id for letter in letters]

    def lanes(self) -> dict[Lane, tuple[int, int]]:
        """(issued, mark) of every lane of the present epoch that was ever used."""
        return self._store.lanes()[1]

    def run_above(self, lane: Lane, mark: int) -> Run | None:
        """First gapless run of held letters above a mark."""
        with self._store.looking() as view:
            runs = (reading.first_run(part.connection, part.epoch, lane, mark, part.last) for part in view.parts(lane))
            return next((run for run in runs if run is not None), None)

    def load(self, lane: Lane, run: Run) -> list[Stored]:
        """The letters of a run, with the floors that they are to be signed with; fewer if some went meanwhile.

        They count as sent from now on: a newer letter does not replace them any more (`add`, `latest`).
        """
        with self._store.lock:
            self._note_released(lane, run.last)
            rows = self._rows(lane, run)
            if any(row["latest"] is not None and not row["released"] for row in rows):
                self._store.change("release letters", lambda c, _: _release(c, lane, run))
                rows = self._rows(lane, run)
            with self._store.looking() as view:
                parts = view.parts(lane)
                gaps = [reading.gap_below(part.connection, part.epoch, lane, run.first) for part in parts]
                lowest = [reading.lowest(part.connection, part.epoch, lane) for part in parts]
        held = [sequence for sequence in lowest if sequence is not None]
        return reading.letters_of(rows, run, min(held, default=1), [gap for gap in gaps if gap is not None])

    def receipt(self, marks: Mapping[Lane, int]) -> None:
        """Take over the courier's marks: letters up to them are receipted, letters above them are waiting again."""
        with self._store.lock:
            epoch, lanes = self._store.lanes()
            if any(lanes.get(lane, (0, 0))[1] != mark for lane, mark in marks.items()):
                self._store.change("note a receipt", lambda c, _: shelf.receipt(c, epoch, marks, self._now()))

    def id_at(self, lane: Lane, sequence: int) -> str | None:
        """Id of the letter that stands or stood on a number; None if not known, `losses.NOBODY` if none ever did."""
        with self._store.looking() as view:
            parts = [part for part in view.parts(lane) if part.first <= sequence <= part.last]
            return next((losses.id_at(part.connection, part.epoch, lane, sequence) for part in parts), None)

    def give_up(self, letter: Stored, reason: LossReason) -> bool:
        """Strike out a letter, by name; False if it is gone, or stands in a file that cannot be written now."""

        def strike(connection: Connection, _: Room) -> bool:
            row = connection.execute("SELECT * FROM letters WHERE id = ?", (letter.id,)).fetchone()
            if row is not None:
                losses.give_up(connection, row, reason)
            return row is not None

        return self._store.change("give up a letter", strike)

    def trim(self) -> int:
        """Housekeeping: give up what waited too long, delete what was receipted long ago; returns how many went."""

        def tidy(connection: Connection, room: Room) -> int:
            gone = shelf.expire(connection, room.bounds, self._store.age(), TRIM_BATCH)
            losses.forget_reported(connection)
            return gone + shelf.trim(connection, room.bounds, self._now(), TRIM_BATCH)

        self._store.bring_back()
        total = 0
        while gone := self._store.change("trim the outbox", tidy):
            total += gone
        return total

    def mend(self) -> bool:
        """Put torn rows right, as at the opening; True if there were any."""
        return self._store.mend()

    def report_losses(self) -> list[str]:
        """Store letters `losses` that tell what was given up and not told yet; returns their ids.

        While letters are in memory nothing is told, since only the file can note that it was.
        """

        def report(connection: Connection, room: Room) -> list[str]:
            told = []
            while self.storage == "disk" and losses.may_report(connection):
                letter_id = str(ULID())
                data = losses.next_report(connection, letter_id)
                new = draft(Entry(losses.KIND, data, "control", letter_id), self._now())
                shelf.store(connection, new, self._store.age(), room.bounds, room.reason)
                told.append(letter_id)
            return told

        with self._store.lock:
            with self._store.looking() as view:
                if view.annex is not None or not losses.may_report(view.disk):
                    return []
            return self._store.change("report losses", report)

    def renew_epoch(self, first: str | None = None) -> str:
        """Begin a new epoch and renumber what waits, letter `first` before all others of its lane.

        What was receipted stays under its old epoch.
        """
        new = str(ULID())
        self._store.change("begin a new epoch", lambda c, _: renumber(c, new, {}, first))
        return new

    def waiting(self, kind: str) -> list[tuple[str, str]]:
        """Id and data of the letters of a kind that no receipt has come for, oldest first."""
        with self._store.looking() as view:
            rows = [row for row in _of_kind(view.all, kind) if view.waits(row)]
        return [(str(row["id"]), str(row["data"])) for row in rows]

    def ids(self, kind: str) -> list[str]:
        """Letters of a kind that are still here, oldest first."""
        with self._store.looking() as view:
            return [str(row["id"]) for row in _of_kind(view.all, kind)]

    def stands_behind_others(self, letter_id: str) -> bool:
        """Whether letters of other kinds wait in front of a waiting letter."""
        query = (
            "SELECT 1 FROM letters l JOIN letters o ON o.epoch = l.epoch AND o.lane = l.lane "
            "WHERE l.id = ? AND o.sequence < l.sequence AND l.state = 'waiting' AND o.state = 'waiting' "
            "AND o.kind <> l.kind LIMIT 1"
        )
        with self._store.looking() as view:
            return any(connection.execute(query, (letter_id,)).fetchone() for connection in view.all)

    def summary(self) -> OutboxSummary:
        """Figures of now."""
        with self._store.looking() as view:
            counters = {"dropped": 0, "superseded": 0}
            for connection in view.all:
                for name, value in connection.execute("SELECT name, value FROM counters"):
                    counters[name] = counters.get(name, 0) + value
            problem = self._store.problem
            return OutboxSummary(
                waiting=view.waiting(),
                kept=sum((shelf.amount(connection, "receipted") for connection in view.all), Amount()),
                dropped=counters["dropped"],
                refused=self._refused_here,
                superseded=counters["superseded"],
                storage=self.storage,
                problem=None if problem is None else str(problem),
            )

    def hand_over(self, sender: Outbox) -> None:
        """Close, and leave what is in memory alone to the outbox of the same file that sends."""
        with self._store.lock:
            self._store.bring_back()
            sender._store.take_over(self._store)
            self.close()

    def close(self) -> None:
        """Close the file; letters in memory that the disk still does not take are lost, and named in the log."""
        self._store.close()

    def _put(self, letters: Sequence[New]) -> None:
        def put(connection: Connection, room: Room) -> None:
            for letter in letters:
                shelf.store(connection, letter, self._store.age(), room.bounds, room.reason)

        with self._store.lock:
            if self._store.annex is not None:
                letters = [letter for letter in letters if not self._on_disk(letter.id)]
            self._store.change("store letters", put)

    def _on_disk(self, letter_id: str) -> bool:
        with self._store.looking() as view:
            return bool(view.disk.execute("SELECT 1 FROM letters WHERE id = ?", (letter_id,)).fetchone())

    def _note_released(self, lane: Lane, upto: int) -> None:
        epoch = self.epoch
        with self._store.looking() as view:
            if upto <= losses.released_upto(view.all[-1], epoch, lane):
                return
        ahead = upto + RELEASE_AHEAD
        self._store.change("note what is sent", lambda c, _: losses.note_released(c, epoch, lane, ahead))

    def _rows(self, lane: Lane, run: Run) -> list[Row]:
        with self._store.looking() as view:
            return [row for part in view.parts(lane) for row in _in_part(part, lane, run)]


def _in_part(part: Part, lane: Lane, run: Run) -> list[Row]:
    within = Run(max(run.first, part.first), min(run.last, part.last))
    return reading.rows_of(part.connection, part.epoch, lane, within)


def _release(connection: Connection, lane: Lane, run: Run) -> None:
    connection.execute(
        "UPDATE letters SET released = 1 WHERE epoch = ? AND lane = ? AND sequence BETWEEN ? AND ? "
        "AND latest IS NOT NULL",
        (shelf.epoch_of(connection), lane, run.first, run.last),
    )


def _of_kind(connections: Sequence[Connection], kind: str) -> list[Row]:
    query = "SELECT id, epoch, lane, sequence, state, data FROM letters WHERE kind = ?"
    rows = [row for connection in connections for row in connection.execute(query, (kind,))]
    return sorted(rows, key=lambda row: str(row["id"]))
