"""Where the outbox's letters are: in the file, and in the annex while the disk does not do its part."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from sqlite3 import Connection, Row
from typing import TypeVar

from ulid import ULID

from edge_runtime.errors import OutboxError
from edge_runtime.letters import shelf
from edge_runtime.letters.ages import Elapsed, continue_age
from edge_runtime.letters.annex import Annex, join, move_back
from edge_runtime.letters.boat import Boat
from edge_runtime.letters.database import DISK_REASONS, Database, transaction
from edge_runtime.letters.mending import mend
from edge_runtime.letters.retention import Amount, Bounds
from edge_runtime.letters.schema import SCHEMA, upgrade
from edge_runtime.logs import Log
from edge_runtime.settings import OutboxLimits
from schemas.courier import LossReason
from schemas.events import Lane

log = Log(__name__)

MOVE_AGAIN_S = 1.0
"""How often a new letter has the disk tried again; housekeeping always does."""
_SHOWN = 20
"""Letters that are named in the log if they are lost with the process."""

T = TypeVar("T")
Lanes = dict[Lane, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Room:
    """What a change works in: the bounds, and the reason by which letters that exceed them are given up."""

    bounds: Bounds
    reason: LossReason


Work = Callable[[Connection, Room], T]


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences `first` to `last` of a lane, in one database."""

    connection: Connection
    epoch: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class View:
    """Both databases, to be looked at while the lock is held."""

    disk: Connection
    annex: Annex | None

    def parts(self, lane: Lane) -> list[Part]:
        """Where the letters of a lane's present epoch are, in order."""
        if self.annex is None:
            epoch = shelf.epoch_of(self.disk)
            return [Part(self.disk, epoch, 1, shelf.lanes_of(self.disk, epoch).get(lane, (0, 0))[0])]
        epoch = self.annex.epoch
        issued = shelf.lanes_of(self.annex.connection, epoch).get(lane, (0, 0))[0]
        if shelf.find_epoch(self.disk) != epoch:
            return [Part(self.annex.connection, epoch, 1, issued)]
        base = self.annex.base.get(lane, 0)
        return [Part(self.disk, epoch, 1, base), Part(self.annex.connection, epoch, base + 1, issued)]

    @property
    def all(self) -> list[Connection]:
        """The file, and the annex if there is one."""
        return [self.disk] if self.annex is None else [self.disk, self.annex.connection]

    def waiting(self) -> Amount:
        """What no receipt has come for."""
        total = sum((shelf.amount(connection, "waiting") for connection in self.all), Amount())
        return total if self.annex is None else total - self._receipted_since()

    def waits(self, row: Row) -> bool:
        """Whether no receipt has come for a letter."""
        if row["state"] != "waiting":
            return False
        return self.annex is None or row["sequence"] > self._mark(row["epoch"], row["lane"])

    def _receipted_since(self) -> Amount:
        assert self.annex is not None
        total = Amount()
        for epoch, lane, mark in self.annex.connection.execute("SELECT epoch, lane, mark FROM lanes"):
            row = self.disk.execute(
                "SELECT count(*), coalesce(sum(bytes), 0) FROM letters "
                "WHERE epoch = ? AND lane = ? AND sequence <= ? AND state = 'waiting'",
                (epoch, lane, mark),
            ).fetchone()
            total += Amount(row[0], row[1])
        return total

    def _mark(self, epoch: str, lane: Lane) -> int:
        assert self.annex is not None
        return shelf.lanes_of(self.annex.connection, epoch).get(lane, (0, 0))[1]


class Store:
    """The file and the annex behind one door. `lock` is to be held by whoever does more than one thing."""

    def __init__(
        self, path: Path, limits: OutboxLimits, now: Callable[[], float], elapsed: Elapsed, *, sends: bool
    ) -> None:
        self._disk_room = Room(Bounds.of(limits), "evicted")
        self._memory_room = Room(Bounds.of_memory(limits), "disk")
        self._now, self._elapsed = now, elapsed
        self.lock = threading.RLock()
        self.annex: Annex | None = None
        self.problem: OutboxError | None = None
        """Why letters go to memory."""
        self._offset = 0.0
        self._tried_at = 0.0
        self._known: tuple[str, Lanes] = (str(ULID()), {})
        """Epoch and lanes as this process left them, for a file that cannot be read any more."""
        self.database = Database(path, SCHEMA, upgrade, mend, looks=sends)
        try:
            with self.database.write("prepare the outbox") as connection:
                self._prepare(connection)
        except OutboxError as error:
            self._retreat(error)
        self._boat = Boat(path.with_name(f"{path.name}-boat")) if sends else None
        if self._boat is not None:
            self._recover(self._boat)
            self._boat.reserve()
            self._keep_apart(self._boat)

    @contextmanager
    def looking(self) -> Iterator[View]:
        """Both databases, for queries."""
        with self.lock, self.database.reading() as disk:
            yield View(disk, self.annex)

    def change(self, what: str, work: Work[T]) -> T:
        """Do something in one transaction: on disk, or in memory if the disk does not do its part.

        Raises:
            OutboxError: `busy`, or what `work` raises; nothing has changed then.
        """
        with self.lock:
            if self.annex is None:
                try:
                    return self._change_file(what, work)
                except OutboxError as error:
                    self._retreat(error)
            assert self.annex is not None
            with transaction(self.annex.connection) as connection:
                result = work(connection, self._memory_room)
            if self._boat is not None and not self.annex.apart:
                self._boat.save(self.annex.manifest())
            return result

    def _change_file(self, what: str, work: Work[T]) -> T:
        def change() -> tuple[T, tuple[str, Lanes]]:
            with self.database.write(what) as connection:
                return work(connection, self._disk_room), self._lanes(connection)

        try:
            result, known = change()
        except (TypeError, ValueError):
            # Nothing has changed. A row was torn since the opening, perhaps.
            if not self.database.mend():
                raise
            result, known = change()
        self._known = known
        return result

    def lanes(self) -> tuple[str, Lanes]:
        """The present epoch, and (issued, mark) of its lanes."""
        with self.lock:
            if self.annex is not None:
                return self._lanes(self.annex.connection)
            with self.database.reading() as connection:
                return self._lanes(connection)

    def age(self) -> float:
        """Reading of the age clock."""
        return self._elapsed()[1] + (self._offset if self.annex is None else self.annex.offset)

    def bring_back(self, *, patient: bool = False) -> None:
        """Move what is in memory to the disk, if the disk works again; `patient`: not if it was tried just now."""
        with self.lock:
            annex = self.annex
            if annex is None or (patient and time.monotonic() < self._tried_at + MOVE_AGAIN_S):
                return
            self._tried_at = time.monotonic()
            try:
                with self.database.write("bring letters back to disk") as connection:
                    self._prepare(connection, annex.epoch)
                    bounds = self._disk_room.bounds
                    if self._boat is None:
                        join(connection, annex, self._offset, bounds)
                    else:
                        move_back(connection, annex, self._offset, bounds, self._now(), self._boat.annex() or annex.id)
            except OutboxError as error:
                self.problem = error
                return
            log.info("outbox.on_disk", letters=len(annex.letters()))
            annex.connection.close()
            self.annex, self.problem = None, None

    def mend(self) -> bool:
        """Look for torn rows in the file; not while letters are in memory, whose numbers go on after the file's."""
        with self.lock:
            return self.annex is None and self.database.mend()

    def take_over(self, other: Store) -> None:
        """What is in the memory alone of a store of the same file that does not send."""
        with self.lock:
            annex = other.annex
            if annex is None:
                return

            def take(connection: Connection, room: Room) -> None:
                offset = self._offset if self.annex is None else self.annex.offset
                join(connection, annex, offset, room.bounds, room.reason)

            self.change("take letters over", take)
            other.abandon()

    def abandon(self) -> list[Row]:
        """Letters that wait in memory alone, which somebody else stores, or which are lost."""
        with self.lock:
            annex, self.annex = self.annex, None
            if annex is None:
                return []
            rows = [row for row in annex.letters() if row["state"] == "waiting"]
            annex.connection.close()
            return rows

    def close(self) -> None:
        """Close both; what is in memory alone is lost, and named in the log."""
        with self.lock:
            self.bring_back()
            if rows := self.abandon():
                log.error("outbox.lost", letters=len(rows), first=[row["id"] for row in rows[:_SHOWN]])
            self.database.close()

    def _prepare(self, connection: Connection, epoch: str | None = None) -> None:
        connection.execute("INSERT INTO meta VALUES ('epoch', ?) ON CONFLICT DO NOTHING", (epoch or self._known[0],))
        self._offset = continue_age(connection, self._elapsed)

    def _retreat(self, error: OutboxError) -> None:
        """Go on in memory after what the file holds; only a disk that does not do its part is a reason."""
        if error.reason not in DISK_REASONS:
            raise error
        file_epoch: str | None = None
        try:
            with self.database.reading() as connection:
                file_epoch = shelf.find_epoch(connection)
                epoch, lanes = self._lanes(connection) if file_epoch else self._known
        except OutboxError:
            # What this process knows of the file, if it ever could read it.
            epoch, lanes = self._known
            file_epoch = epoch if lanes else None
        self.annex = Annex.open(epoch, lanes, file_epoch, self._offset)
        self.problem, self._tried_at = error, time.monotonic()
        log.warning("outbox.in_memory", reason=error.reason, message=str(error))

    def _recover(self, boat: Boat) -> None:
        """Letters were in memory when this device's last process ended: take over what is known of them."""
        manifest = boat.load()
        if manifest is None or self._moved_back(manifest.annex):
            return
        resumed = Annex.resume(manifest, self._offset)
        (lost,) = resumed.connection.execute("SELECT value FROM counters WHERE name = 'dropped'").fetchone()
        if lost:
            log.error("outbox.letters_lost_in_memory", letters=lost, epoch=manifest.epoch, lanes=manifest.lanes)
        if self.annex is not None:
            self.annex.connection.close()
        self.annex = resumed
        self.bring_back()

    def _keep_apart(self, boat: Boat) -> None:
        """On a disk that takes nothing at all, the last process may have given numbers that nobody knows of.

        An epoch that began just now has none such.
        """
        annex = self.annex
        if annex is not None and annex.epoch != self._known[0] and not boat.save(annex.manifest()):
            annex.keep_apart(Random())  # noqa: S311 - no secret

    def _moved_back(self, annex: str) -> bool:
        with self.database.reading() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = 'annex'").fetchone()
        return row is not None and row[0] == annex

    @staticmethod
    def _lanes(connection: Connection) -> tuple[str, Lanes]:
        epoch = shelf.epoch_of(connection)
        return epoch, shelf.lanes_of(connection, epoch)
