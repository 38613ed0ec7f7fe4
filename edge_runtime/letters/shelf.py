"""Letters in one database: the outbox has one on disk, and one in memory while the disk does not do its part.

Every function works in a transaction, or on a connection, of its caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from sqlite3 import Connection, Row

from edge_runtime.errors import OutboxError
from edge_runtime.letters.losses import KIND as LOSSES
from edge_runtime.letters.losses import give_up
from edge_runtime.letters.retention import Amount, Bounds, Kept, lane_above_bounds, lane_to_evict, may_go
from schemas.courier import LossReason
from schemas.events import LANES, Lane


@dataclass(frozen=True, slots=True)
class New:
    """A letter that is to be stored."""

    id: str
    kind: str
    lane: Lane
    text: str
    time: float
    bytes: int
    latest: str | None = None


def epoch_of(connection: Connection) -> str:
    """The present epoch."""
    return str(connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0])


def find_epoch(connection: Connection) -> str | None:
    """The present epoch; None in a file that was never written to."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
    return None if row is None else str(row[0])


def lanes_of(connection: Connection, epoch: str) -> dict[Lane, tuple[int, int]]:
    """(issued, mark) of every lane of an epoch that was ever used, and that this version knows."""
    rows = connection.execute("SELECT lane, issued, mark FROM lanes WHERE epoch = ?", (epoch,))
    return {row["lane"]: (row["issued"], row["mark"]) for row in rows if row["lane"] in LANES}


def store(connection: Connection, letter: New, age: float, bounds: Bounds, reason: LossReason) -> None:
    """Give a letter its place, after what it replaces and what must make room for it; not if it is here already.

    Raises:
        OutboxError: `outbox_full`.
    """
    if connection.execute("SELECT 1 FROM letters WHERE id = ?", (letter.id,)).fetchone():
        return
    if letter.latest is not None:
        replaced = connection.execute(
            "SELECT * FROM letters WHERE kind = ? AND latest = ? AND state = 'waiting' AND released = 0",
            (letter.kind, letter.latest),
        ).fetchall()
        for row in replaced:
            give_up(connection, row, "superseded")
    _make_room(connection, letter, bounds, reason)
    epoch = epoch_of(connection)
    sequence = connection.execute(
        "INSERT INTO lanes VALUES (?, ?, 1, 0) ON CONFLICT DO UPDATE SET issued = issued + 1 RETURNING issued",
        (epoch, letter.lane),
    ).fetchone()[0]
    connection.execute(
        "INSERT INTO letters (id, epoch, lane, sequence, kind, data, time, bytes, born, latest) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(letter.id, epoch, letter.lane, sequence, letter.kind),
            *(letter.text, letter.time, letter.bytes, age, letter.latest),
        ),
    )


def shrink(connection: Connection, bounds: Bounds, reason: LossReason) -> None:
    """Give up what exceeds the bounds."""
    while (lane := lane_above_bounds(waiting_in(connection), bounds)) is not None:
        give_up_oldest(connection, lane, reason)


def expire(connection: Connection, bounds: Bounds, age: float, limit: int) -> int:
    """Give up at most so many of those that waited too long; returns how many went.

    Args:
        connection: in a transaction.
        bounds: with the ages that letters may reach.
        age: present reading of the age clock.
        limit: letters in one transaction.
    """
    gone = 0
    for lane, most in bounds.max_age_s.items():
        while gone < limit and (row := _oldest(connection, lane, but=LOSSES)) is not None:
            if row["born"] is None or age - row["born"] < most:
                break
            give_up(connection, row, "expired")
            gone += 1
    return gone


def receipt(connection: Connection, epoch: str, marks: Mapping[Lane, int], now: float) -> None:
    """Letters up to the marks are receipted, letters above them are waiting again."""
    known = lanes_of(connection, epoch)
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


def trim(connection: Connection, bounds: Bounds, now: float, limit: int) -> int:
    """Delete at most so many receipted letters that need not be kept any longer; returns how many went."""
    for gone in range(limit):
        oldest = connection.execute(
            "SELECT receipted_at, bytes, epoch, lane FROM letters WHERE state = 'receipted' "
            "ORDER BY receipted_at, sequence LIMIT 1"
        ).fetchone()
        if oldest is None:
            return gone
        kept = amount(connection, "receipted")
        if not may_go(Kept(oldest["receipted_at"], oldest["bytes"]), kept, bounds.total, now):
            return gone
        # Always the lowest of its lane, even if the clock was set back, since a hole would block what follows.
        connection.execute(
            "DELETE FROM letters WHERE rowid = (SELECT rowid FROM letters WHERE epoch = ? AND lane = ? "
            "AND state = 'receipted' ORDER BY sequence LIMIT 1)",
            (oldest["epoch"], oldest["lane"]),
        )
    return limit


def give_up_oldest(connection: Connection, lane: Lane, reason: LossReason) -> None:
    """The oldest waiting letter of a lane goes; a report of losses only if nothing else is left.

    Raises:
        ValueError: if none waits though the totals say so, since a row is torn.
    """
    row = _oldest(connection, lane, but=LOSSES) or _oldest(connection, lane)
    if row is None:
        raise ValueError(f"give up a letter of lane {lane}: the totals count one, and none waits")
    give_up(connection, row, reason)


def waiting_in(connection: Connection) -> dict[Lane, Amount]:
    """What waits in each lane."""
    rows = connection.execute("SELECT lane, letters, bytes FROM totals WHERE state = 'waiting'")
    return {row["lane"]: Amount(row["letters"], row["bytes"]) for row in rows}


def amount(connection: Connection, state: str) -> Amount:
    """What there is of a state in all lanes."""
    row = connection.execute(
        "SELECT coalesce(sum(letters), 0), coalesce(sum(bytes), 0) FROM totals WHERE state = ?", (state,)
    ).fetchone()
    return Amount(row[0], row[1])


def _oldest(connection: Connection, lane: Lane, but: str = "") -> Row | None:
    epoch = epoch_of(connection)
    mark = lanes_of(connection, epoch).get(lane, (0, 0))[1]
    row: Row | None = connection.execute(
        "SELECT * FROM letters WHERE epoch = ? AND lane = ? AND sequence > ? AND state = 'waiting' AND kind <> ? "
        "ORDER BY sequence LIMIT 1",
        (epoch, lane, mark, but),
    ).fetchone()
    return row


def _make_room(connection: Connection, letter: New, bounds: Bounds, reason: LossReason) -> None:
    while True:
        try:
            victim = lane_to_evict(letter.lane, letter.bytes, waiting_in(connection), bounds)
        except ValueError as error:
            raise OutboxError(
                f"store a letter in lane {letter.lane}: the outbox is full of more urgent ones "
                f"({bounds.total.letters} letters or {bounds.total.bytes} bytes); "
                "connect the device, or raise outbox.max_bytes in the settings",
                reason="outbox_full",
            ) from error
        if victim is None:
            return
        give_up_oldest(connection, victim, reason)
