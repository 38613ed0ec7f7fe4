"""Rows of the outbox that no program of this version wrote: of a later version, changed by hand, or torn by the disk.

SQLite takes a word where a number should stand, and such a row would stop its lane, or the agent at every start. So
the file is looked through at its opening. Whatever a row still says is kept; what was given up is noted as lost.
"""

# ruff: noqa: S608 - the statements are put together of constants alone

from __future__ import annotations

import re
from sqlite3 import Connection
from typing import get_args

from ulid import ULID

from edge_runtime.letters.database import transaction
from edge_runtime.letters.drafts import ROW_OVERHEAD
from edge_runtime.letters.losses import note
from edge_runtime.letters.shelf import find_epoch, lanes_of
from edge_runtime.logs import Log
from schemas.courier import LossReason
from schemas.events import LANES, Lane
from schemas.ids import ULID as ULID_FORM

log = Log(__name__)

_SHOWN = 20
"""Letters that are named in the log."""


def _words(values: tuple[str, ...]) -> str:
    return "(" + ", ".join(f"'{value}'" for value in values) + ")"


_LANES, _REASONS = _words(LANES), _words(get_args(LossReason))
_NUMBERS = "('real', 'integer')"
_EPOCH = "(SELECT value FROM meta WHERE key = 'epoch')"

_NO_PLACE = (
    f"typeof(sequence) <> 'integer' OR sequence < 1 OR lane NOT IN {_LANES} "
    f"OR (state = 'waiting' AND epoch IS NOT {_EPOCH})"
)
_NEWEST = "(SELECT max({0}) FROM letters WHERE typeof({0}) IN " + _NUMBERS + ")"
_COLUMNS = {
    "id": ("typeof(id) <> 'text' OR id GLOB '*[^ -~]*'", "'torn ' || rowid"),
    "bytes": ("typeof(bytes) <> 'integer'", f"length(CAST(data AS BLOB)) + {ROW_OVERHEAD}"),
    "state": ("state NOT IN ('waiting', 'receipted')", "'waiting'"),
    "born": (f"typeof(born) NOT IN {_NUMBERS} AND born IS NOT NULL", _NEWEST.format("born")),
    "receipted_at": (
        f"state = 'receipted' AND typeof(receipted_at) NOT IN {_NUMBERS}",
        f"coalesce({_NEWEST.format('receipted_at')}, {_NEWEST.format('time')}, 0)",
    ),
}
"""Columns of `letters`: when they are torn, and what is put there. A torn age is that of the youngest."""
_TORN_LETTER = " OR ".join(f"({condition})" for condition in [_NO_PLACE, *(when for when, _ in _COLUMNS.values())])
_TORN_LOSS = (
    f"lane NOT IN {_LANES} OR typeof(first) <> 'integer' OR typeof(last) <> 'integer' OR first < 1 OR last < first "
    "OR length(epoch) <> 26 OR epoch GLOB '*[^0-9A-Z]*'"
)
_OURS = f"epoch = {_EPOCH} AND lane IN {_LANES}"
"""Of other epochs and lanes nothing is read here."""


def mend(connection: Connection) -> bool:
    """Put torn rows right, in one transaction; True if there were any."""
    if not _torn(connection):
        return False
    with transaction(connection):
        if not _torn(connection):
            return False  # another process wrote between two looks
        epoch = _mend_epoch(connection)
        # Numbers of which no row tells any more are found as holes below.
        shortened = connection.execute(
            "UPDATE losses SET last = first, maybe_arrived = 1 WHERE typeof(last) <> 'integer' OR last < first"
        ).rowcount
        forgotten = connection.execute(f"DELETE FROM losses WHERE {_TORN_LOSS}").rowcount
        connection.execute(f"UPDATE losses SET reason = 'disk' WHERE reason NOT IN {_REASONS}")
        for column, (when, value) in _COLUMNS.items():
            connection.execute(f"UPDATE letters SET {column} = {value} WHERE {when}")
        for lane in LANES:
            _mend_lane(connection, epoch, lane)
        moved = _place_anew(connection, epoch)
        if moved or shortened or forgotten:
            for lane in LANES:
                _note_holes(connection, epoch, lane)
        connection.execute("UPDATE counters SET value = 0 WHERE typeof(value) <> 'integer'")
        connection.execute("DELETE FROM totals")
        connection.execute(
            "INSERT INTO totals SELECT lane, state, count(*), sum(bytes) FROM letters GROUP BY lane, state"
        )
    log.error("outbox.mended", epoch=epoch, placed_anew=len(moved), first=moved[:_SHOWN], losses_forgotten=forgotten)
    return True


def _torn(connection: Connection) -> bool:
    epoch = find_epoch(connection)
    if not _is_ulid(epoch) if epoch else connection.execute("SELECT 1 FROM letters LIMIT 1").fetchone():
        return True
    for table, condition in (
        ("lanes", f"{_OURS} AND (typeof(issued) <> 'integer' OR typeof(mark) <> 'integer')"),
        ("released", f"{_OURS} AND typeof(upto) <> 'integer'"),
        ("counters", "typeof(value) <> 'integer'"),
        ("totals", "typeof(letters) <> 'integer' OR typeof(bytes) <> 'integer'"),
        ("losses", f"{_TORN_LOSS} OR reason NOT IN {_REASONS}"),
        ("letters", _TORN_LETTER),
    ):
        if connection.execute(f"SELECT 1 FROM {table} WHERE {condition} LIMIT 1").fetchone():
            return True
    # A hole alone is no sign: what was receipted while it was in memory left none but its number.
    return epoch is not None and any(
        _highest(connection, epoch, lane) > issued
        for lane, (issued, _) in (dict.fromkeys(LANES, (0, 0)) | lanes_of(connection, epoch)).items()
    )


def _is_ulid(text: str) -> bool:
    return re.fullmatch(ULID_FORM, text) is not None


def _mend_epoch(connection: Connection) -> str:
    """What waits in an epoch whose name is gone is placed anew, in a new one."""
    epoch = find_epoch(connection)
    if epoch is None or not _is_ulid(epoch):
        epoch = str(ULID())
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))
    return epoch


def _mend_lane(connection: Connection, epoch: str, lane: Lane) -> None:
    """No number that may have been given is given again, and no letter counts as receipted that may not be."""
    where = (epoch, lane)
    known = connection.execute("SELECT issued, mark FROM lanes WHERE epoch = ? AND lane = ?", where).fetchone()
    issued, mark = known or (None, None)
    upto = connection.execute("SELECT upto FROM released WHERE epoch = ? AND lane = ?", where).fetchone()
    highest = _highest(connection, epoch, lane)
    if not isinstance(mark, int):
        mark = connection.execute(
            "SELECT coalesce(max(sequence), 0) FROM letters "
            "WHERE epoch = ? AND lane = ? AND state = 'receipted' AND typeof(sequence) = 'integer'",
            where,
        ).fetchone()[0]
        if not highest and upto and isinstance(upto[0], int):
            highest = upto[0]  # nothing else tells how many there were
    issued = max(issued if isinstance(issued, int) else mark, highest)
    if issued:
        connection.execute("INSERT OR REPLACE INTO lanes VALUES (?, ?, ?, ?)", (*where, issued, mark))
    if upto and not isinstance(upto[0], int):
        connection.execute("UPDATE released SET upto = ? WHERE epoch = ? AND lane = ?", (issued, *where))


def _highest(connection: Connection, epoch: str, lane: Lane) -> int:
    """Highest number of which a row tells."""
    found = connection.execute(
        "SELECT max(sequence) FROM letters WHERE epoch = ? AND lane = ? AND typeof(sequence) = 'integer' "
        "UNION ALL SELECT max(last) FROM losses WHERE epoch = ? AND lane = ?",
        (epoch, lane) * 2,
    ).fetchall()
    return max(row[0] or 0 for row in found)


def _place_anew(connection: Connection, epoch: str) -> list[str]:
    """Waiting letters without a place go to the end of their lane; a copy of one that was receipted is worth less."""
    connection.execute(f"DELETE FROM letters WHERE state = 'receipted' AND ({_NO_PLACE})")
    rows = connection.execute(f"SELECT rowid, id, lane FROM letters WHERE {_NO_PLACE} ORDER BY rowid").fetchall()
    for rowid, _, said in rows:
        lane = said if said in LANES else "normal"
        (sequence,) = connection.execute(
            "INSERT INTO lanes VALUES (?, ?, 1, 0) ON CONFLICT DO UPDATE SET issued = issued + 1 RETURNING issued",
            (epoch, lane),
        ).fetchone()
        connection.execute(
            "UPDATE letters SET epoch = ?, lane = ?, sequence = ?, released = 1 WHERE rowid = ?",
            (epoch, lane, sequence, rowid),
        )
    return [str(row[1]) for row in rows]


def _holes(connection: Connection, epoch: str, lane: Lane, issued: int) -> list[tuple[int, int]]:
    """Numbers between the lowest letter held and the last one given that neither a letter nor a loss stands for."""
    where = (epoch, lane)
    (lowest,) = connection.execute("SELECT min(sequence) FROM letters WHERE epoch = ? AND lane = ?", where).fetchone()
    if lowest is None:
        return []
    found, expected = [], lowest
    for first, last in connection.execute(
        "SELECT sequence, sequence FROM letters WHERE epoch = ? AND lane = ? UNION ALL "
        "SELECT first, last FROM losses WHERE epoch = ? AND lane = ? ORDER BY 1",
        where * 2,
    ):
        if first > expected:
            found.append((expected, first - 1))
        expected = max(expected, last + 1)
    return [*found, (expected, issued)] if expected <= issued else found


def _note_holes(connection: Connection, epoch: str, lane: Lane) -> None:
    """The courier is to pass over them; what stood there may be a letter that was placed anew."""
    issued, _ = lanes_of(connection, epoch).get(lane, (0, 0))
    for first, last in _holes(connection, epoch, lane, issued):
        note(connection, epoch, lane, first, "disk", last=last, maybe_arrived=True)
