"""The inbox: letters down that were taken, until handled and then as ids for as long as they could come again.

| table | one row per | columns |
|---|---|---|
| letters | letter taken | `id`, `kind`, `slot`, `generation`, `revision`, `expires`, `taken_at` in seconds since 1970, `state` held or handled, `envelope` while held |
| orders | (kind, slot) | `generation`, `revision` of the newest that was taken |
| floors | service key | `keyid`, `generation`, `time` proven by that key |
| facts | name | `value`: what the agent must not forget (twin, restarts, digest of the last trust pack) |
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar

from edge_runtime.errors import OutboxError
from edge_runtime.letters.admission import Admission, Order, admit
from edge_runtime.letters.database import DISK_REASONS, Database, transaction
from edge_runtime.logs import Log
from schemas.events import DownLetter, utc
from schemas.ids import ULID

log = Log(__name__)

MAX_HELD = 1_000
MAX_IDS = 50_000
FLOOR_STEP_S = 60.0
KEEP_AFTER_EXPIRY_S = 24 * 3_600.0
"""The courier may be late in dropping an expired letter."""
_SHOWN = 512
"""Characters of an error in the log."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS letters (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, slot TEXT NOT NULL, generation INTEGER NOT NULL, revision INTEGER NOT NULL,
    expires REAL NOT NULL, taken_at REAL NOT NULL, state TEXT NOT NULL, envelope BLOB);
CREATE INDEX IF NOT EXISTS letters_by_state ON letters (state, expires);
CREATE TABLE IF NOT EXISTS orders (
    kind TEXT NOT NULL, slot TEXT NOT NULL, generation INTEGER NOT NULL, revision INTEGER NOT NULL,
    PRIMARY KEY (kind, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS floors (
    keyid TEXT PRIMARY KEY, generation INTEGER NOT NULL, time REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_TORN = {
    "letters": "state NOT IN ('held', 'handled')",
    "floors": "time NOT BETWEEN 0 AND 253402300799",  # what `utc` knows; every word is above all numbers
    "orders": "typeof(generation) <> 'integer' OR typeof(revision) <> 'integer'",
}
_MENDING = (
    f"UPDATE letters SET state = iif(envelope IS NULL, 'handled', 'held') WHERE {_TORN['letters']}",  # noqa: S608
    f"DELETE FROM floors WHERE {_TORN['floors']}",  # noqa: S608
    # What is still known of the slot; letters are kept longer than they could come again.
    f"""
    INSERT OR REPLACE INTO orders SELECT kind, slot, generation, max(revision) FROM letters l
    WHERE (kind, slot) IN (SELECT kind, slot FROM orders WHERE {_TORN["orders"]})
    AND generation = (SELECT max(generation) FROM letters m WHERE m.kind = l.kind AND m.slot = l.slot)
    GROUP BY kind, slot
    """,  # noqa: S608
    f"DELETE FROM orders WHERE {_TORN['orders']}",  # noqa: S608
)

T = TypeVar("T")


def mend(connection: Connection) -> bool:
    """Put right what no program of this version wrote (`mending` does so for the outbox); True if there was any."""
    queries = [f"SELECT count(*) FROM {table} WHERE {condition}" for table, condition in _TORN.items()]  # noqa: S608
    found = [connection.execute(query).fetchone()[0] for query in queries]
    if not any(found):
        return False
    with transaction(connection):
        for statement in _MENDING:
            connection.execute(statement)
    log.error("inbox.mended", rows=dict(zip(_TORN, found, strict=True)))
    return True


def _bytes(envelope: object) -> bytes:
    return envelope if isinstance(envelope, bytes) else b""


@dataclass(frozen=True, slots=True)
class Held:
    """A letter that was taken and is not handled yet."""

    id: str
    kind: str
    envelope: bytes


@dataclass(frozen=True, slots=True)
class _Change:
    """Of a fact or a floor; `value` is what it says afterwards, None if it is gone."""

    query: str
    values: tuple[object, ...]
    value: str | float | None


class Inbox:
    """What came down, on disk. What is about letters raises OutboxError if the disk does not do its part.

    Such a letter is not got and stays with the courier; facts and floors that cannot be written are kept in memory.
    """

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        """`now`: seconds since 1970."""
        self._now = now
        self._database = Database(path, SCHEMA, mend=mend)
        self._unsaved: dict[tuple[str, str], _Change] = {}

    def judge(self, letter: DownLetter[Any], kind: str) -> Admission:
        """Whether a verified letter is new."""
        seen = self._database.read("SELECT generation, revision FROM letters WHERE id = ?", (letter.id,))
        newest = self._database.read(
            "SELECT generation, revision FROM orders WHERE kind = ? AND slot = ?", (kind, letter.slot)
        )
        return admit(
            Order(letter.generation, letter.revision),
            Order(newest[0]["generation"], newest[0]["revision"]) if newest else None,
            own_slot=letter.slot == letter.id,
            seen=bool(seen),
        )

    def full(self) -> bool:
        """Whether too many letters wait to be handled; more stay in the mailbox until some are."""
        return int(self._database.read("SELECT count(*) FROM letters WHERE state = 'held'")[0][0]) >= MAX_HELD

    def take(self, letter: DownLetter[Any], kind: str, envelope: bytes, keyid: str) -> None:
        """Store a letter, its order in its slot and the time that it proves; on disk when this returns."""
        with self._database.write("store a letter down") as connection:
            connection.execute(
                "INSERT OR REPLACE INTO letters VALUES (?, ?, ?, ?, ?, ?, ?, 'held', ?)",
                (
                    *(letter.id, kind, letter.slot, letter.generation, letter.revision),
                    *(letter.expires.timestamp(), self._now(), envelope),
                ),
            )
            if letter.slot != letter.id:
                connection.execute(
                    "INSERT OR REPLACE INTO orders VALUES (?, ?, ?, ?)",
                    (kind, letter.slot, letter.generation, letter.revision),
                )
            connection.execute(
                "INSERT INTO floors VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET time = max(time, excluded.time)",
                (keyid, letter.generation, letter.time.timestamp()),
            )

    def handled(self, letter_id: str) -> None:
        """Keep only the id of a letter."""
        with self._database.write("note a handled letter") as connection:
            connection.execute("UPDATE letters SET state = 'handled', envelope = NULL WHERE id = ?", (letter_id,))

    def held(self) -> list[Held]:
        """Letters that are not handled yet, oldest first."""
        rows = self._database.read(
            "SELECT id, kind, envelope FROM letters WHERE state = 'held' ORDER BY taken_at, rowid"
        )
        # One whose envelope is gone is refused like any other that cannot be read.
        return [Held(row["id"], row["kind"], _bytes(row["envelope"])) for row in rows]

    def rename(self, was: str, letter_id: str) -> None:
        """Give a letter its own id back, which its envelope says."""
        with self._database.write("mend the id of a letter") as connection:
            connection.execute("UPDATE OR REPLACE letters SET id = ? WHERE id = ?", (letter_id, was))

    def newest_ids(self, limit: int) -> list[str]:
        """Ids of the letters that came last, for hello."""
        rows = self._database.read("SELECT id FROM letters ORDER BY taken_at DESC LIMIT ?", (limit,))
        return [str(row["id"]) for row in rows if re.fullmatch(ULID, str(row["id"]))]

    def trim(self) -> None:
        """Forget ids that cannot come again, and the oldest beyond the bound."""
        if self._unsaved:
            # Written along with what else is to be written; if that fails, it stays here.
            self._save("store what was learned", {})
        if self._unsaved:
            return
        with self._database.write("trim the inbox") as connection:
            connection.execute(
                "DELETE FROM letters WHERE state = 'handled' AND expires < ?", (self._now() - KEEP_AFTER_EXPIRY_S,)
            )
            connection.execute(
                "DELETE FROM letters WHERE id IN (SELECT id FROM letters WHERE state = 'handled' "
                "ORDER BY expires DESC LIMIT -1 OFFSET ?)",
                (MAX_IDS,),
            )

    def time_floor(self) -> datetime | None:
        """Latest time that a service key has proven."""
        return max(self.time_floors().values(), default=None)

    def time_floors(self) -> dict[str, datetime]:
        """What each service key has proven, by its id."""
        return {keyid: utc(time) for keyid, time in self._floors().items()}

    def prove(self, keyid: str, generation: int, time: datetime) -> None:
        """Raise the time that a key has proven; by steps of a minute, to spare the flash."""
        known = self._floors().get(keyid)
        if known is not None and time.timestamp() < known + FLOOR_STEP_S:
            return
        query, at = "INSERT OR REPLACE INTO floors VALUES (?, ?, ?)", time.timestamp()
        self._save("raise a time floor", {("floor", keyid): _Change(query, (keyid, generation, at), at)})

    def keep_floors(self, keyids: Collection[str]) -> None:
        """Drop the times proven by keys that are no longer listed: one of them may have been stolen."""
        query = "DELETE FROM floors WHERE keyid = ?"
        gone = [keyid for keyid in self._floors() if keyid not in keyids]
        if gone:
            self._save("drop time floors", {("floor", keyid): _Change(query, (keyid,), None) for keyid in gone})

    def fact(self, name: str) -> str | None:
        """Something remembered."""
        if ("fact", name) in self._unsaved:
            return str(self._unsaved["fact", name].value)
        rows = self._database.read("SELECT value FROM facts WHERE name = ?", (name,))
        return str(rows[0]["value"]) if rows else None

    def recall(self, name: str, read: Callable[[str], T], otherwise: T) -> T:
        """A fact as `read` makes it of its text; `otherwise` if there is none, or it is torn."""
        text = self.fact(name)
        try:
            return otherwise if text is None else read(text)
        except (ValueError, TypeError, OverflowError) as error:
            log.error("inbox.fact_unreadable", fact=name, reason=str(error)[:_SHOWN])
            return otherwise

    def remember(self, name: str, value: str) -> None:
        """Store a fact; on disk when this returns, or as soon as the disk does its part."""
        query = "INSERT OR REPLACE INTO facts VALUES (?, ?)"
        self._save(f"remember {name}", {("fact", name): _Change(query, (name, value), value)})

    def _floors(self) -> dict[str, float]:
        rows = self._database.read("SELECT keyid, time FROM floors")
        floors: dict[str, float | str | None] = {row["keyid"]: row["time"] for row in rows}
        floors |= {name: change.value for (table, name), change in self._unsaved.items() if table == "floor"}
        return {keyid: float(time) for keyid, time in floors.items() if time is not None}

    def _save(self, what: str, changes: Mapping[tuple[str, str], _Change]) -> None:
        """Write changes that must not fail for a disk that does not do its part: they then stay in memory.

        Facts and floors are few, each known by its name; letters are not among them, and stay with the courier.
        """
        wanted = {**self._unsaved, **changes}
        try:
            with self._database.write(what) as connection:
                for change in wanted.values():
                    connection.execute(change.query, change.values)
        except OutboxError as error:
            if error.reason not in DISK_REASONS:
                raise
            if not self._unsaved:
                log.warning("inbox.in_memory", reason=error.reason, message=str(error))
            self._unsaved = wanted
            return
        if self._unsaved:
            log.info("inbox.on_disk", changes=len(self._unsaved))
        self._unsaved = {}

    def close(self) -> None:
        """Close the file."""
        self._database.close()
