"""The outbox: every letter up, from its first moment until some time after its receipt. The ledger of this device.

One SQLite file, meant to be read by other programs too:

| table | one row per | columns |
|---|---|---|
| meta | fact | `key`, `value`; `epoch` is the present one (ULID made with the file) |
| lanes | (epoch, lane) | `issued` highest sequence ever given out, `mark` highest known to be receipted |
| letters | letter still here | `id` ULID, `epoch`, `lane`, `sequence`, `kind`, `data` JSON, `time` and `receipted_at` in seconds since 1970, `bytes`, `state` waiting or receipted |
| losses | range given up | `epoch`, `lane`, `first`, `last`, `reason` evicted or renumbered, `letters` that were really there |
| totals | (lane, state) | `letters`, `bytes`, kept by triggers |
| counters | name | `value`: dropped, refused |

A letter is signed when it is sent, since its floor may move; its identity is its `id`. Letters do not expire here: only
the bounds push them out.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

from ulid import ULID

from edge_runtime.errors import OutboxError
from edge_runtime.letters.database import Database
from edge_runtime.letters.retention import Amount, Gap, Kept, floor_of, lane_to_evict, may_go
from edge_runtime.letters.sending import Run
from edge_runtime.settings import OutboxLimits
from schemas.envelope import MAX_LETTER_BYTES
from schemas.events import LANES, Lane, Message

ROW_OVERHEAD = 256
"""Bytes that a letter takes beside its data."""
TRIM_BATCH = 500
_ENVELOPE_OVERHEAD = 1_200
"""Bytes of the event's other fields and of the envelope, at most."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lanes (
    epoch TEXT NOT NULL, lane TEXT NOT NULL, issued INTEGER NOT NULL, mark INTEGER NOT NULL,
    PRIMARY KEY (epoch, lane)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS letters (
    id TEXT PRIMARY KEY, epoch TEXT NOT NULL, lane TEXT NOT NULL, sequence INTEGER NOT NULL, kind TEXT NOT NULL,
    data TEXT NOT NULL, time REAL NOT NULL, bytes INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'waiting',
    receipted_at REAL, UNIQUE (epoch, lane, sequence));
CREATE INDEX IF NOT EXISTS letters_by_receipt ON letters (receipted_at, sequence) WHERE state = 'receipted';
CREATE INDEX IF NOT EXISTS letters_waiting ON letters (lane, sequence) WHERE state = 'waiting';
CREATE TABLE IF NOT EXISTS losses (
    epoch TEXT NOT NULL, lane TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, reason TEXT NOT NULL,
    letters INTEGER NOT NULL, PRIMARY KEY (epoch, lane, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    lane TEXT NOT NULL, state TEXT NOT NULL, letters INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (lane, state)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS letter_added AFTER INSERT ON letters BEGIN
    INSERT INTO totals VALUES (new.lane, new.state, 1, new.bytes)
    ON CONFLICT DO UPDATE SET letters = letters + 1, bytes = bytes + new.bytes;
END;
CREATE TRIGGER IF NOT EXISTS letter_gone AFTER DELETE ON letters BEGIN
    UPDATE totals SET letters = letters - 1, bytes = bytes - old.bytes WHERE lane = old.lane AND state = old.state;
END;
CREATE TRIGGER IF NOT EXISTS letter_moved AFTER UPDATE OF state ON letters WHEN old.state <> new.state BEGIN
    UPDATE totals SET letters = letters - 1, bytes = bytes - old.bytes WHERE lane = old.lane AND state = old.state;
    INSERT INTO totals VALUES (new.lane, new.state, 1, new.bytes)
    ON CONFLICT DO UPDATE SET letters = letters + 1, bytes = bytes + new.bytes;
END;
"""


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


@dataclass(frozen=True, slots=True)
class OutboxSummary:
    """Figures for heartbeat and status."""

    waiting: Amount
    kept: Amount
    dropped: int
    refused: int


class Outbox:
    """Durable letters up; safe to use from several threads and processes.

    Every method raises OutboxError if the disk does not do its part; nothing is half done then.
    """

    def __init__(self, path: Path, limits: OutboxLimits, now: Callable[[], float]) -> None:
        """`now`: seconds since 1970, from the device's clock."""
        self._bound = Amount(limits.max_letters, limits.max_bytes)
        self._now = now
        self.database = Database(path, SCHEMA)
        self._refused_here = 0
        with self.database.write("prepare the outbox") as connection:
            connection.execute("INSERT INTO meta VALUES ('epoch', ?) ON CONFLICT DO NOTHING", (str(ULID()),))

    @property
    def epoch(self) -> str:
        """The present epoch."""
        return str(self.database.read("SELECT value FROM meta WHERE key = 'epoch'")[0][0])

    def add(self, kind: str, data: Message, lane: Lane, letter_id: str | None = None) -> str:
        """Store a letter; it is on disk when this returns. A `letter_id` that is here already is not stored again.

        Raises:
            OutboxError: `oversized`, `outbox_full` or what the disk says; the letter was not accepted.
        """
        text = data.model_dump_json(exclude_none=True, by_alias=True)
        size = len(text.encode())
        if (size + _ENVELOPE_OVERHEAD) * 4 // 3 > MAX_LETTER_BYTES:
            raise OutboxError(
                f"store a letter {kind} of {size} bytes: more than a letter may carry; send large data by digest",
                reason="oversized",
            )
        letter_id = letter_id or str(ULID())
        try:
            with self.database.write(f"store a letter {kind}") as connection:
                if connection.execute("SELECT 1 FROM letters WHERE id = ?", (letter_id,)).fetchone():
                    return letter_id
                self._make_room(connection, lane, size + ROW_OVERHEAD)
                self._insert(connection, (letter_id, lane, kind, text, self._now(), size + ROW_OVERHEAD))
        except OutboxError:
            self._refused_here += 1
            raise
        return letter_id

    def lanes(self) -> dict[Lane, tuple[int, int]]:
        """(issued, mark) of every lane of the present epoch that was ever used."""
        rows = self.database.read("SELECT lane, issued, mark FROM lanes WHERE epoch = ?", (self.epoch,))
        return {row["lane"]: (row["issued"], row["mark"]) for row in rows}

    def run_above(self, lane: Lane, mark: int) -> Run | None:
        """First gapless run of held letters above a mark."""
        epoch = self.epoch
        row = self.database.read(
            "SELECT min(sequence) FROM letters WHERE epoch = ? AND lane = ? AND sequence > ?", (epoch, lane, mark)
        )[0]
        if row[0] is None:
            return None
        first = int(row[0])
        gap = self.database.read(
            "SELECT min(first) FROM losses WHERE epoch = ? AND lane = ? AND first > ?", (epoch, lane, first)
        )[0][0]
        if gap is not None:
            return Run(first, int(gap) - 1)
        issued = self.database.read("SELECT issued FROM lanes WHERE epoch = ? AND lane = ?", (epoch, lane))[0][0]
        return Run(first, int(issued))

    def load(self, lane: Lane, run: Run) -> list[Stored]:
        """The letters of a run, with the floors that they are to be signed with."""
        epoch = self.epoch
        where = (epoch, lane)
        lowest = self.database.read("SELECT min(sequence) FROM letters WHERE epoch = ? AND lane = ?", where)[0][0]
        gaps = [
            Gap(row["first"], row["last"])
            for row in self.database.read("SELECT first, last FROM losses WHERE epoch = ? AND lane = ?", where)
        ]
        rows = self.database.read(
            "SELECT * FROM letters WHERE epoch = ? AND lane = ? AND sequence BETWEEN ? AND ? ORDER BY sequence",
            (epoch, lane, run.first, run.last),
        )
        return [
            Stored(
                id=row["id"],
                epoch=epoch,
                lane=lane,
                sequence=row["sequence"],
                floor=floor_of(row["sequence"], lowest, gaps),
                kind=row["kind"],
                data=row["data"],
                time=row["time"],
            )
            for row in rows
        ]

    def receipt(self, marks: Mapping[Lane, int]) -> None:
        """Take over the courier's marks: letters up to them are receipted, letters above them are waiting again."""
        epoch, now = self.epoch, self._now()
        known = self.lanes()
        with self.database.write("note a receipt") as connection:
            for lane, mark in marks.items():
                if known.get(lane, (0, 0))[1] == mark:
                    continue
                connection.execute("UPDATE lanes SET mark = ? WHERE epoch = ? AND lane = ?", (mark, epoch, lane))
                connection.execute(
                    "UPDATE letters SET state = 'receipted', receipted_at = ? "
                    "WHERE epoch = ? AND lane = ? AND sequence <= ? AND state = 'waiting'",
                    (now, epoch, lane, mark),
                )
                connection.execute(
                    "UPDATE letters SET state = 'waiting', receipted_at = NULL "
                    "WHERE epoch = ? AND lane = ? AND sequence > ? AND state = 'receipted'",
                    (epoch, lane, mark),
                )

    def trim(self) -> int:
        """Delete receipted letters that need not be kept any longer; returns how many went."""
        gone = 0
        with self.database.write("trim the outbox") as connection:
            while gone < TRIM_BATCH:
                oldest = connection.execute(
                    "SELECT epoch, lane, receipted_at, bytes FROM letters WHERE state = 'receipted' "
                    "ORDER BY receipted_at, sequence LIMIT 1"
                ).fetchone()
                if oldest is None:
                    break
                kept = Kept(oldest["receipted_at"], oldest["bytes"])
                if not may_go(kept, _amount(connection, "receipted"), self._bound, self._now()):
                    break
                # Always the lowest of its lane, even if the clock was set back, since a hole would block what follows.
                connection.execute(
                    "DELETE FROM letters WHERE rowid = (SELECT rowid FROM letters WHERE epoch = ? AND lane = ? "
                    "AND state = 'receipted' ORDER BY sequence LIMIT 1)",
                    (oldest["epoch"], oldest["lane"]),
                )
                gone += 1
        return gone

    def renew_epoch(self, first: str | None = None) -> str:
        """Begin a new epoch and renumber what waits, letter `first` before all others of its lane.

        What was receipted stays under its old epoch.
        """
        old, new = self.epoch, str(ULID())
        with self.database.write("begin a new epoch") as connection:
            connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (new,))
            for lane in LANES:
                rows = connection.execute(
                    "SELECT id, sequence FROM letters WHERE epoch = ? AND lane = ? AND state = 'waiting' "
                    "ORDER BY id <> ?, sequence",
                    (old, lane, first or ""),
                ).fetchall()
                for number, row in enumerate(rows, 1):
                    _lose(connection, old, lane, row["sequence"], "renumbered", 0)
                    connection.execute(
                        "UPDATE letters SET epoch = ?, sequence = ? WHERE id = ?", (new, number, row["id"])
                    )
                if rows:
                    connection.execute("INSERT INTO lanes VALUES (?, ?, ?, 0)", (new, lane, len(rows)))
        return new

    def waiting(self, kind: str) -> list[tuple[str, str]]:
        """Id and data of the letters of a kind that no receipt has come for, oldest first."""
        rows = self.database.read(
            "SELECT id, data FROM letters WHERE kind = ? AND state = 'waiting' ORDER BY id", (kind,)
        )
        return [(str(row["id"]), str(row["data"])) for row in rows]

    def stands_behind_others(self, letter_id: str) -> bool:
        """Whether letters of other kinds wait in front of a waiting letter."""
        rows = self.database.read(
            "SELECT 1 FROM letters l JOIN letters o ON o.epoch = l.epoch AND o.lane = l.lane "
            "WHERE l.id = ? AND o.sequence < l.sequence AND l.state = 'waiting' AND o.state = 'waiting' "
            "AND o.kind <> l.kind LIMIT 1",
            (letter_id,),
        )
        return bool(rows)

    def ids(self, kind: str) -> list[str]:
        """Letters of a kind that are still here, oldest first."""
        return [
            str(row["id"]) for row in self.database.read("SELECT id FROM letters WHERE kind = ? ORDER BY id", (kind,))
        ]

    def summary(self) -> OutboxSummary:
        """Figures of now."""
        totals = {"waiting": Amount(), "receipted": Amount()}
        for row in self.database.read("SELECT state, letters, bytes FROM totals"):
            totals[row["state"]] += Amount(row["letters"], row["bytes"])
        counters = {row["name"]: row["value"] for row in self.database.read("SELECT name, value FROM counters")}
        return OutboxSummary(totals["waiting"], totals["receipted"], counters.get("dropped", 0), self._refused_here)

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def _insert(self, connection: Connection, letter: tuple[str, Lane, str, str, float, int]) -> None:
        letter_id, lane, kind, text, time, size = letter
        epoch = connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0]
        sequence = connection.execute(
            "INSERT INTO lanes VALUES (?, ?, 1, 0) ON CONFLICT DO UPDATE SET issued = issued + 1 RETURNING issued",
            (epoch, lane),
        ).fetchone()[0]
        connection.execute(
            "INSERT INTO letters (id, epoch, lane, sequence, kind, data, time, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (letter_id, epoch, lane, sequence, kind, text, time, size),
        )

    def _make_room(self, connection: Connection, lane: Lane, size: int) -> None:
        while True:
            waiting: dict[Lane, Amount] = {
                row["lane"]: Amount(row["letters"], row["bytes"])
                for row in connection.execute("SELECT lane, letters, bytes FROM totals WHERE state = 'waiting'")
            }
            try:
                victim = lane_to_evict(lane, size, waiting, self._bound)
            except ValueError as error:
                raise OutboxError(
                    f"store a letter in lane {lane}: the outbox is full of more urgent ones "
                    f"({self._bound.letters} letters or {self._bound.bytes} bytes); "
                    "connect the device, or raise outbox.max_bytes in the settings",
                    reason="outbox_full",
                ) from error
            if victim is None:
                return
            _evict_oldest(connection, victim)


def _evict_oldest(connection: Connection, lane: Lane) -> None:
    row = connection.execute(
        "SELECT id, epoch, sequence FROM letters WHERE lane = ? AND state = 'waiting' ORDER BY sequence LIMIT 1",
        (lane,),
    ).fetchone()
    connection.execute("DELETE FROM letters WHERE id = ?", (row["id"],))
    _lose(connection, row["epoch"], lane, row["sequence"], "evicted", 1)
    connection.execute("INSERT INTO counters VALUES ('dropped', 1) ON CONFLICT DO UPDATE SET value = value + 1")


def _lose(connection: Connection, epoch: str, lane: Lane, sequence: int, reason: str, letters: int) -> None:
    """Note a sequence that will never come, joined to the range that ends just before it."""
    joined = connection.execute(
        "UPDATE losses SET last = ?, letters = letters + ? WHERE epoch = ? AND lane = ? AND last = ? AND reason = ?",
        (sequence, letters, epoch, lane, sequence - 1, reason),
    ).rowcount
    if not joined:
        connection.execute(
            "INSERT INTO losses VALUES (?, ?, ?, ?, ?, ?)", (epoch, lane, sequence, sequence, reason, letters)
        )


def _amount(connection: Connection, state: str) -> Amount:
    row = connection.execute(
        "SELECT coalesce(sum(letters), 0), coalesce(sum(bytes), 0) FROM totals WHERE state = ?", (state,)
    ).fetchone()
    return Amount(row[0], row[1])
