"""What this device carries, on disk: fragments of others and its own, what it has let go, and what was proven done.

| table | one row per | columns |
|---|---|---|
| fragments | fragment in custody, by its `mark` (`names.py`) | `name` of its bundle, address label, `copies`, `hops`, age as of a moment, `giver`, `letter` that hands it to the platform, `verified`, head and payload |
| seen | fragment let go | so that it is not taken again |
| done | finished bundle, by its `name` | `proof`: the courier's bundle whose head acknowledges it, empty if this device saw it itself |
| proofs | such a head | `head` as the courier signed it |
| packed | open bundle of this device | `epoch`, `ranges` per lane, `told` of the greeting, `is_full`, the moment of its making |
| asked | (one) | `told` and moment of the last bundle that was made |
"""  # noqa: E501

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from edge_runtime.carriers.ages import Moment, elapsed_s
from edge_runtime.carriers.names import FragmentKey, Label, key_of, label_of
from edge_runtime.carriers.packing import Asked, Packed
from edge_runtime.carriers.routing import Carried
from edge_runtime.carriers.rows import read_carried, read_packed, read_stored
from edge_runtime.letters.database import Database, transaction
from edge_runtime.logs import Log
from schemas.bundles import MAX_COPIES, Parcel

log = Log(__name__)

MAX_SEEN = 8_192
MAX_DONE = 4_096
MAX_PROOFS = 64
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

SCHEMA = """
CREATE TABLE IF NOT EXISTS fragments (
    bundle TEXT NOT NULL, mark TEXT NOT NULL, name TEXT NOT NULL, idx INTEGER NOT NULL, count INTEGER NOT NULL,
    origin TEXT NOT NULL, destination TEXT NOT NULL, priority TEXT NOT NULL, lifetime_s INTEGER NOT NULL,
    hops INTEGER NOT NULL, copies INTEGER NOT NULL, age_s REAL NOT NULL, boot TEXT NOT NULL, since_boot_s REAL NOT NULL,
    clock_s REAL NOT NULL, bytes INTEGER NOT NULL, own INTEGER NOT NULL, giver TEXT NOT NULL, verified INTEGER NOT NULL,
    letter TEXT, head BLOB NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (bundle, mark));
CREATE TABLE IF NOT EXISTS seen (
    number INTEGER PRIMARY KEY, bundle TEXT NOT NULL, mark TEXT NOT NULL, UNIQUE (bundle, mark));
CREATE TABLE IF NOT EXISTS done (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bundle TEXT NOT NULL, proof TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS done_bundle ON done (bundle);
CREATE TABLE IF NOT EXISTS proofs (number INTEGER PRIMARY KEY, bundle TEXT NOT NULL UNIQUE, head BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS packed (
    bundle TEXT PRIMARY KEY, name TEXT NOT NULL, epoch TEXT NOT NULL, ranges TEXT NOT NULL, told TEXT NOT NULL,
    is_full INTEGER NOT NULL, boot TEXT NOT NULL, since_boot_s REAL NOT NULL,
    clock_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS asked (
    one INTEGER PRIMARY KEY CHECK (one = 1), told TEXT NOT NULL, boot TEXT NOT NULL, since_boot_s REAL NOT NULL,
    clock_s REAL NOT NULL);
"""
_FACTS = (
    "bundle, mark, idx, count, origin, destination, priority, lifetime_s, hops, copies, age_s, boot, since_boot_s, "
    "clock_s, bytes, own, giver, verified, letter"
)


def machine_moment() -> Moment:
    """Now, on this machine."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        # Nothing names the run of this machine: every process counts as one, and the clock fills the gaps.
        boot = f"process {os.getpid()}"
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return Moment(boot, time.clock_gettime(clock), time.time())


class CarriedStore:
    """Fragments in custody; safe to use from several processes. Every method raises OutboxError as `Database` does."""

    def __init__(self, path: Path, moment: Callable[[], Moment] = machine_moment) -> None:
        self._moment = moment
        self._database = Database(path, SCHEMA, _upgrade)

    def carried(self) -> list[Carried]:
        """Everything in custody, with the ages of now."""
        now = self._moment()
        return [read_carried(row, now) for row in self._database.read(f"SELECT {_FACTS} FROM fragments")]  # noqa: S608

    def custody(self, own: str) -> dict[str, Any]:
        """What is here in numbers, for the status; `own` is this device's address."""
        row = self._database.read(
            "SELECT count(*) FILTER (WHERE others) AS fragments, "
            "coalesce(sum(bytes) FILTER (WHERE others), 0) AS bytes, "
            "coalesce(sum(copies) FILTER (WHERE others), 0) AS copies, "
            "count(*) FILTER (WHERE others AND NOT verified) AS unverified, count(*) FILTER (WHERE own) AS mine, "
            "coalesce(sum(copies) FILTER (WHERE own), 0) AS my_copies, "
            "count(*) FILTER (WHERE NOT own AND NOT others) AS arriving, (SELECT count(*) FROM packed) AS packed "
            "FROM (SELECT *, NOT own AND destination <> ? AS others FROM fragments)",
            (own,),
        )[0]
        return {
            "carried": {name: int(row[name]) for name in ("fragments", "bytes", "copies", "unverified")},
            "own": {"fragments": int(row["mine"]), "copies": int(row["my_copies"])},
            "arriving": int(row["arriving"]),
            "open_bundles": int(row["packed"]),
        }

    def facts(self, key: FragmentKey) -> Carried | None:
        """One fragment without its payload."""
        rows = self._database.read(f"SELECT {_FACTS} FROM fragments WHERE bundle = ? AND mark = ?", key)  # noqa: S608
        return read_carried(rows[0], self._moment()) if rows else None

    def load(self, key: FragmentKey) -> Parcel | None:
        """A whole fragment; its way says what this device holds now."""
        rows = self._database.read("SELECT * FROM fragments WHERE bundle = ? AND mark = ?", key)
        return read_stored(rows[0], self._moment()) if rows else None

    def fragments_of(self, bundle: str, destination: str | None = None) -> list[Parcel]:
        """All that is here under the id of a bundle, in order; of one `destination` only, if it is given."""
        now = self._moment()
        rows = self._database.read(
            "SELECT * FROM fragments WHERE bundle = ? AND destination = coalesce(?, destination) ORDER BY idx",
            (bundle, destination),
        )
        return [read_stored(row, now) for row in rows]

    def whole(self, destination: str) -> list[str]:
        """Bundles to a destination of which every fragment is here, oldest first."""
        rows = self._database.read(
            "SELECT bundle FROM fragments WHERE destination = ? GROUP BY bundle HAVING "
            "count(DISTINCT idx) = max(count) ORDER BY min(rowid)",
            (destination,),
        )
        return [str(row["bundle"]) for row in rows]

    def add(
        self,
        parcels: Sequence[Parcel],
        *,
        copies: int,
        giver: str = "",
        own: bool = False,
        verified: bool = False,
        evicted: Iterable[FragmentKey] = (),
    ) -> None:
        """Take fragments into custody, and let others go for them, in one transaction; what is here already stays."""
        now = self._moment()
        with self._database.write("store a fragment") as connection:
            _forget(connection, evicted)
            for parcel in parcels:
                _insert(connection, parcel, now, copies=copies, giver=giver, own=own, verified=verified)

    def pack(self, packed: Packed, parcels: Sequence[Parcel], replaced: Iterable[Label]) -> None:
        """Take a new bundle of this device into custody, in the place of some older ones."""
        now = self._moment()
        with self._database.write("store a bundle") as connection:
            _close(connection, replaced)
            for parcel in parcels:
                _insert(connection, parcel, now, copies=MAX_COPIES, giver="", own=True, verified=True)
            ranges = ",".join(f"{lane}:{span.first}-{span.last}" for lane, span in packed.spans.items())
            connection.execute(
                "INSERT INTO packed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(packed.id, label_of(parcels[0].head).name, packed.epoch, ranges, packed.told, packed.full),
                    *(now.boot, now.since_boot_s, now.clock_s),
                ),
            )
            connection.execute(
                "INSERT OR REPLACE INTO asked VALUES (1, ?, ?, ?, ?)",
                (packed.told, now.boot, now.since_boot_s, now.clock_s),
            )

    def asked(self) -> Asked | None:
        """The last bundle that this device made."""
        rows = self._database.read("SELECT * FROM asked")
        if not rows:
            return None
        row = rows[0]
        return Asked(row["told"], elapsed_s(Moment(row["boot"], row["since_boot_s"], row["clock_s"]), self._moment()))

    def packed(self) -> list[Packed]:
        """Open bundles of this device, oldest first."""
        now = self._moment()
        return [read_packed(row, now) for row in self._database.read("SELECT * FROM packed ORDER BY bundle")]

    def close_packed(self, bundles: Iterable[Label]) -> None:
        """Open bundles that are of no use any more: nobody shall carry them further from here."""
        with self._database.write("close bundles") as connection:
            _close(connection, bundles)

    def give(self, key: FragmentKey, *, was: int, kept: int, drop: bool = False) -> bool:
        """Give up a share of a fragment's copies, and the fragment itself if it is to be dropped.

        Returns:
            False if it has not `was` copies any more, since another process or thread was quicker; nothing changes.
        """
        with self._database.write("give up copies") as connection:
            given = connection.execute(
                "UPDATE fragments SET copies = ? WHERE bundle = ? AND mark = ? AND copies = ?", (kept, *key, was)
            ).rowcount
            if given and drop:
                _let_go(connection, [key])
        return bool(given)

    def own_more(self, key: FragmentKey, copies: int) -> None:
        """A peer has released its share to this device."""
        with self._database.write("take over copies") as connection:
            connection.execute(
                "UPDATE fragments SET copies = min(?, copies + ?) WHERE bundle = ? AND mark = ?",
                (MAX_COPIES, copies, *key),
            )

    def vouch(self, key: FragmentKey) -> None:
        """The signature of a fragment in custody is known to hold by now."""
        with self._database.write("note a proven fragment") as connection:
            connection.execute("UPDATE fragments SET verified = 1 WHERE bundle = ? AND mark = ?", key)

    def let_go(self, keys: Iterable[FragmentKey]) -> None:
        """End custody: somebody else is responsible now. They are not taken again."""
        keys = list(keys)
        with self._database.write("let fragments go") as connection:
            _let_go(connection, keys)

    def drop(self, keys: Iterable[FragmentKey]) -> None:
        """Delete fragments for want of life or room; they may come again."""
        with self._database.write("drop fragments") as connection:
            _forget(connection, keys)

    def finish(self, bundles: Iterable[Label], proof: tuple[str, bytes] | None = None) -> None:
        """Bundles that have reached their destination; `proof` is the id and head of the bundle that says so."""
        with self._database.write("note finished bundles") as connection:
            for bundle in bundles:
                connection.execute("DELETE FROM fragments WHERE bundle = ? AND name = ?", (bundle.bundle, bundle.name))
                connection.execute("DELETE FROM packed WHERE bundle = ? AND name = ?", (bundle.bundle, bundle.name))
                connection.execute(
                    "INSERT INTO done (name, bundle, proof) VALUES (?, ?, ?) "
                    "ON CONFLICT (name) DO UPDATE SET proof = excluded.proof WHERE proof = ''",
                    (bundle.name, bundle.bundle, proof[0] if proof else ""),
                )
            if proof is not None:
                connection.execute("INSERT INTO proofs (bundle, head) VALUES (?, ?) ON CONFLICT DO NOTHING", proof)
            _bound(connection, "done", MAX_DONE)
            _bound(connection, "proofs", MAX_PROOFS)

    def without_proof(self, bundles: Iterable[Label]) -> list[Label]:
        """Those of which the courier has not said yet that they are finished."""
        return [
            bundle
            for bundle in bundles
            if not self._database.read("SELECT 1 FROM done WHERE name = ? AND proof <> ''", (bundle.name,))
        ]

    def is_done(self, bundle: Label) -> bool:
        """Whether a bundle is known to be finished."""
        return bool(self._database.read("SELECT 1 FROM done WHERE name = ?", (bundle.name,)))

    def was_seen(self, key: FragmentKey) -> bool:
        """Whether custody of a fragment ended here before."""
        return bool(self._database.read("SELECT 1 FROM seen WHERE bundle = ? AND mark = ?", key))

    def seen(self, limit: int) -> list[FragmentKey]:
        """Fragments let go, newest first."""
        rows = self._database.read("SELECT bundle, mark FROM seen ORDER BY number DESC LIMIT ?", (limit,))
        return [(str(row["bundle"]), str(row["mark"])) for row in rows]

    def done(self, limit: int) -> list[str]:
        """Names of finished bundles, newest first."""
        rows = self._database.read("SELECT name FROM done ORDER BY number DESC LIMIT ?", (limit,))
        return [str(row["name"]) for row in rows]

    def done_ids(self) -> set[str]:
        """Ids of finished bundles."""
        return {str(row["bundle"]) for row in self._database.read("SELECT bundle FROM done")}

    def proofs(self, bundles: Iterable[str], known: Collection[str] = ()) -> list[bytes]:
        """Heads that prove bundles with these ids done, but those whose names are known to be."""
        found: dict[str, bytes] = {}
        for bundle in bundles:
            for row in self._database.read(
                "SELECT d.name, p.bundle, p.head FROM done d JOIN proofs p ON p.bundle = d.proof WHERE d.bundle = ?",
                (bundle,),
            ):
                if row["name"] not in known:
                    found[str(row["bundle"])] = bytes(row["head"])
        return list(found.values())

    def letters(self) -> dict[FragmentKey, str]:
        """Fragments that a letter of this device brings to the platform, with its id."""
        rows = self._database.read("SELECT bundle, mark, letter FROM fragments WHERE letter IS NOT NULL")
        return {(str(row["bundle"]), str(row["mark"])): str(row["letter"]) for row in rows}

    def set_letter(self, key: FragmentKey, letter_id: str | None) -> None:
        """Note the letter that hands a fragment in; None if it came to nothing."""
        with self._database.write("note a letter of a fragment") as connection:
            connection.execute("UPDATE fragments SET letter = ? WHERE bundle = ? AND mark = ?", (letter_id, *key))

    def unverified(self, destination: str) -> list[FragmentKey]:
        """Fragments to a destination whose signer is not known yet, oldest first."""
        rows = self._database.read(
            "SELECT bundle, mark FROM fragments WHERE destination = ? AND NOT verified ORDER BY rowid", (destination,)
        )
        return [(str(row["bundle"]), str(row["mark"])) for row in rows]

    def namesakes(self, of: Carried) -> list[FragmentKey]:
        """Fragments that claim to be the same part of the same bundle, and whose signer is not known."""
        rows = self._database.read(
            "SELECT bundle, mark FROM fragments "
            "WHERE bundle = ? AND mark <> ? AND name = ? AND idx = ? AND NOT verified",
            (*of.key, of.label.name, of.index),
        )
        return [(str(row["bundle"]), str(row["mark"])) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _upgrade(connection: Connection) -> None:
    """Begin anew with a file of before the marks: nothing in it has a name, and the origins have their letters."""
    if not _nameless(connection):
        return
    with transaction(connection):
        # Another process may have been quicker.
        if _nameless(connection):
            (gone,) = connection.execute("SELECT count(*) FROM fragments").fetchone()
            for table in ("fragments", "seen", "done", "proofs", "packed", "asked"):
                connection.execute(f"DROP TABLE IF EXISTS {table}")
            log.warning("carriers.begun_anew", fragments=gone, message="the file is of an earlier version")


def _nameless(connection: Connection) -> bool:
    columns = {row[1] for row in connection.execute("PRAGMA table_info(fragments)")}
    return bool(columns) and "mark" not in columns


def _insert(
    connection: Connection, parcel: Parcel, now: Moment, *, copies: int, giver: str, own: bool, verified: bool
) -> None:
    head, way = parcel.head, parcel.way
    size = len(parcel.head_bytes) + len(parcel.payload)
    connection.execute(
        "INSERT OR IGNORE INTO fragments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?)",
        (
            *(
                *key_of(parcel),
                label_of(head).name,
                head.fragment.index,
                head.fragment.count,
                head.origin,
                head.destination,
                head.priority,
            ),
            *(head.lifetime_s, way.hops, copies, way.age_s, now.boot, now.since_boot_s, now.clock_s),
            *(size, own, giver, verified, parcel.head_bytes, parcel.payload),
        ),
    )


def _forget(connection: Connection, keys: Iterable[FragmentKey]) -> None:
    connection.executemany("DELETE FROM fragments WHERE bundle = ? AND mark = ?", list(keys))


def _let_go(connection: Connection, keys: Sequence[FragmentKey]) -> None:
    _forget(connection, keys)
    connection.executemany("INSERT OR IGNORE INTO seen (bundle, mark) VALUES (?, ?)", keys)
    _bound(connection, "seen", MAX_SEEN)


def _close(connection: Connection, bundles: Iterable[Label]) -> None:
    for bundle in bundles:
        connection.execute("DELETE FROM fragments WHERE bundle = ? AND name = ? AND own", (bundle.bundle, bundle.name))
        connection.execute("DELETE FROM packed WHERE bundle = ? AND name = ?", (bundle.bundle, bundle.name))
        # So that carriers who come by again let go of it, too.
        connection.execute(
            "INSERT INTO done (name, bundle, proof) VALUES (?, ?, '') ON CONFLICT DO NOTHING",
            (bundle.name, bundle.bundle),
        )
    _bound(connection, "done", MAX_DONE)


def _bound(connection: Connection, table: str, limit: int) -> None:
    connection.execute(
        f"DELETE FROM {table} WHERE number <= (SELECT number FROM {table} ORDER BY number DESC LIMIT 1 OFFSET ?)",  # noqa: S608
        (limit,),
    )
