"""The loss ledger: every letter that was given up, until a letter `losses` has told the platform of it.

A loss and its reason are noted in the transaction that deletes the letter, and marked as reported in the transaction
that stores the report, so that each is told exactly once, whatever crashes in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from sqlite3 import Connection, Row

from pydantic import ValidationError

from schemas.courier import Loss, Losses, LossReason, LostLetter
from schemas.events import Lane

KIND = "losses"
MAX_NAMES = 2_000
"""Letters given up that are remembered by name until they are reported; of more there are only the numbers."""
NAMES_PER_REPORT = 256
RANGES_PER_REPORT = 64
MAX_WAITING_REPORTS = 8
"""So that losses cannot fill what is reserved for urgent letters; they go on being noted, and are told later."""
MAX_REPORTED = 2_000
"""Ranges that are kept after they were reported, for whoever reads the file."""
NOBODY = ""

_COUNTED: dict[LossReason, str] = {
    "evicted": "dropped",
    "expired": "dropped",
    "disk": "dropped",
    "unsendable": "dropped",
    "superseded": "superseded",
}


@dataclass(frozen=True, slots=True)
class Range:
    """Consecutive sequences of one lane that were given up for one reason."""

    epoch: str
    lane: Lane
    first: int
    last: int
    reason: LossReason
    maybe_arrived: bool = False

    @property
    def letters(self) -> int:
        """How many were really letters; a number that was given anew lost none."""
        return 0 if self.reason == "renumbered" else self.last - self.first + 1

    def until(self, last: int) -> Range:
        """Its part up to a sequence."""
        return replace(self, last=last)

    def after(self, last: int) -> Range:
        """Its part behind a sequence."""
        return replace(self, first=last + 1)


def range_of(row: Row) -> Range:
    """A row of `losses`."""
    return Range(
        row["epoch"], row["lane"], row["first"], row["last"], row["reason"], maybe_arrived=bool(row["maybe_arrived"])
    )


def give_up(connection: Connection, letter: Row, reason: LossReason) -> None:
    """Delete a waiting letter (a row of `letters`) and note it.

    Raises:
        ValueError: if its row cannot be found again, since it is torn.
    """
    place = (letter["epoch"], letter["lane"], letter["sequence"])
    # By its place: an id that is no text any more reads otherwise than it stands there.
    gone = connection.execute("DELETE FROM letters WHERE epoch = ? AND lane = ? AND sequence = ?", place)
    if not gone.rowcount:
        raise ValueError(f"give up letter {place}: there is no such row")
    sent = bool(letter["released"]) or letter["sequence"] <= released_upto(connection, letter["epoch"], letter["lane"])
    note(connection, *place, reason, maybe_arrived=sent)
    name(connection, *place, letter["id"], letter["kind"])
    connection.execute(
        "INSERT INTO counters VALUES (?, 1) ON CONFLICT DO UPDATE SET value = value + 1", (_COUNTED[reason],)
    )
    if letter["kind"] == KIND:
        _take_back(connection, letter)


def released_upto(connection: Connection, epoch: str, lane: Lane) -> int:
    """Letters up to this sequence may have been sent."""
    row = connection.execute("SELECT upto FROM released WHERE epoch = ? AND lane = ?", (epoch, lane)).fetchone()
    return 0 if row is None else int(row[0])


def note_released(connection: Connection, epoch: str, lane: Lane, upto: int) -> None:
    """Letters up to `upto` are about to be sent."""
    connection.execute(
        "INSERT INTO released VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET upto = max(upto, excluded.upto)",
        (epoch, lane, upto),
    )


def note(
    connection: Connection,
    epoch: str,
    lane: Lane,
    sequence: int,
    reason: LossReason,
    *,
    last: int | None = None,
    maybe_arrived: bool = False,
) -> None:
    """Note a sequence, or all from it to `last`, that will never come, joined to their unreported neighbours."""
    first, last = sequence, last or sequence
    below = connection.execute(
        "SELECT * FROM losses WHERE epoch = ? AND lane = ? AND first < ? ORDER BY first DESC LIMIT 1",
        (epoch, lane, sequence),
    ).fetchone()
    above = connection.execute(
        "SELECT * FROM losses WHERE epoch = ? AND lane = ? AND first = ?", (epoch, lane, last + 1)
    ).fetchone()
    if _joins(below, reason, maybe_arrived) and below["last"] == sequence - 1:
        first = below["first"]
    if _joins(above, reason, maybe_arrived):
        connection.execute("DELETE FROM losses WHERE epoch = ? AND lane = ? AND first = ?", (epoch, lane, last + 1))
        last = above["last"]
    write(connection, Range(epoch, lane, first, last, reason, maybe_arrived), None)


def write(connection: Connection, lost: Range, report: str | None) -> None:
    """Store a range as it is."""
    connection.execute(
        "INSERT OR REPLACE INTO losses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (lost.epoch, lost.lane, lost.first, lost.last, lost.reason, lost.letters, report, lost.maybe_arrived),
    )


def name(connection: Connection, epoch: str, lane: Lane, sequence: int, letter_id: str, kind: str) -> None:
    """Remember which letter stood on a number, if there is room and the name can be told: a row may be torn."""
    if _lost_letter(letter_id, kind, sequence) is None:
        return
    connection.execute(
        "INSERT OR IGNORE INTO lost SELECT ?, ?, ?, ?, ? WHERE (SELECT count(*) FROM lost) < ?",
        (epoch, lane, sequence, letter_id, kind, MAX_NAMES),
    )


def id_at(connection: Connection, epoch: str, lane: Lane, sequence: int) -> str | None:
    """Id of the letter that stands or stood on a number, as far as it is known; `NOBODY` if none ever did."""
    held = connection.execute(
        "SELECT id FROM letters WHERE epoch = ? AND lane = ? AND sequence = ? "
        "UNION ALL SELECT id FROM lost WHERE epoch = ? AND lane = ? AND sequence = ?",
        (epoch, lane, sequence) * 2,
    ).fetchone()
    if held is not None:
        return str(held[0])
    told = connection.execute(
        "SELECT reason, data FROM losses l LEFT JOIN letters ON id = report "
        "WHERE l.epoch = ? AND l.lane = ? AND first <= ? AND last >= ?",
        (epoch, lane, sequence, sequence),
    ).fetchone()
    if told is None:
        return None
    for loss in _told_by(told["data"]):
        if (loss.epoch, loss.lane) == (epoch, lane):
            for lost in loss.names:
                if lost.sequence == sequence:
                    return lost.id
    return NOBODY if told["reason"] == "renumbered" else None


def may_report(connection: Connection) -> bool:
    """Whether something is to be told, and not too many reports wait already."""
    if connection.execute("SELECT 1 FROM losses WHERE report IS NULL LIMIT 1").fetchone() is None:
        return False
    waiting = connection.execute(
        "SELECT count(DISTINCT report) FROM losses JOIN letters ON id = report WHERE state = 'waiting'"
    ).fetchone()[0]
    return int(waiting) < MAX_WAITING_REPORTS


def next_report(connection: Connection, report: str) -> Losses:
    """What letter `report` is to say; noted as told by it in the same transaction."""
    rows = connection.execute(
        "SELECT * FROM losses WHERE report IS NULL ORDER BY epoch, lane, first LIMIT ?", (RANGES_PER_REPORT,)
    ).fetchall()
    told, left = [], NAMES_PER_REPORT
    for row in rows:
        lost = range_of(row)
        where = (lost.epoch, lost.lane, lost.first, lost.last)
        names = connection.execute(
            "SELECT id, kind, sequence FROM lost WHERE epoch = ? AND lane = ? AND sequence BETWEEN ? AND ? "
            "ORDER BY sequence LIMIT ?",
            (*where, left + 1),
        ).fetchall()
        if len(names) > left:
            if not left:
                break
            names = names[:left]
            write(connection, lost.after(names[-1]["sequence"]), None)
            lost = lost.until(names[-1]["sequence"])
        write(connection, lost, report)
        connection.execute(
            "DELETE FROM lost WHERE epoch = ? AND lane = ? AND sequence BETWEEN ? AND ?",
            (lost.epoch, lost.lane, lost.first, lost.last),
        )
        left -= len(names)
        letters = [_lost_letter(row["id"], row["kind"], row["sequence"]) for row in names]
        told.append(
            Loss(
                epoch=lost.epoch,
                lane=lost.lane,
                first=lost.first,
                last=lost.last,
                reason=lost.reason,
                letters=lost.letters,
                maybe_arrived=lost.maybe_arrived,
                names=[letter for letter in letters if letter is not None],
            )
        )
    return Losses(losses=told)


def forget_reported(connection: Connection) -> None:
    """Keep the file bounded: ranges that were told, whose report was receipted, and that no letter needs any more."""
    connection.execute(
        """
        DELETE FROM losses WHERE (epoch, lane, first) IN (
            SELECT l.epoch, l.lane, l.first FROM losses l
            WHERE l.report IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM letters t WHERE t.id = l.report AND t.state = 'waiting')
            AND NOT EXISTS (
                SELECT 1 FROM letters t WHERE t.epoch = l.epoch AND t.lane = l.lane AND t.sequence < l.first)
            AND (l.epoch <> (SELECT value FROM meta WHERE key = 'epoch')
                 OR l.last <= (SELECT mark FROM lanes n WHERE n.epoch = l.epoch AND n.lane = l.lane))
            ORDER BY l.epoch DESC, l.first DESC LIMIT -1 OFFSET ?)
        """,
        (MAX_REPORTED,),
    )


def _joins(neighbour: Row | None, reason: LossReason, maybe_arrived: bool) -> bool:
    if neighbour is None or neighbour["report"] is not None:
        return False
    return bool(neighbour["reason"] == reason and neighbour["maybe_arrived"] == maybe_arrived)


def _take_back(connection: Connection, letter: Row) -> None:
    """A report was given up itself: what it told is to be told again."""
    connection.execute("UPDATE losses SET report = NULL WHERE report = ?", (letter["id"],))
    for loss in _told_by(letter["data"]):
        for lost in loss.names:
            name(connection, loss.epoch, loss.lane, lost.sequence, lost.id, lost.kind)


def _told_by(report: str | None) -> list[Loss]:
    """What a report says; nothing if its row is torn or is no report. The ranges stand in `losses` all the same."""
    try:
        return [] if report is None else Losses.model_validate_json(report).losses
    except ValidationError:
        return []


def _lost_letter(letter_id: str, kind: str, sequence: int) -> LostLetter | None:
    """A letter by name; None if no report can name it so."""
    try:
        return LostLetter(id=letter_id, kind=kind, sequence=sequence)
    except ValidationError:
        return None
