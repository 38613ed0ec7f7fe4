"""Ledgers of those who send and of those who receive: SQLite files that are on disk before anything else happens."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUSY_S = 10.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS sent (
    device TEXT NOT NULL, lane TEXT NOT NULL, number INTEGER NOT NULL, letter TEXT NOT NULL,
    handed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (device, lane, number)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sent_unhanded ON sent (handed) WHERE handed = 0;
CREATE TABLE IF NOT EXISTS taken (
    run INTEGER PRIMARY KEY, device TEXT NOT NULL, lane TEXT NOT NULL, number INTEGER NOT NULL, letter TEXT NOT NULL,
    life TEXT NOT NULL, effect INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS taken_letters ON taken (letter);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One letter as its sender numbers it."""

    device: str
    lane: str
    number: int
    letter: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a receiver."""

    entry: Entry
    life: str
    effect: bool


class Ledger:
    """What one program sent and took; every write is on disk when it returns."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)

    def intend(self, entries: Iterable[Entry]) -> None:
        """Note letters before they are handed over, and that all noted before have been."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("UPDATE sent SET handed = 1 WHERE handed = 0")
        self._db.executemany(
            "INSERT INTO sent (device, lane, number, letter) VALUES (?, ?, ?, ?)",
            [(e.device, e.lane, e.number, e.letter) for e in entries],
        )
        self._db.execute("COMMIT")

    def handed(self, entry: Entry) -> None:
        """Note that one letter was handed over, where a repetition would not be known as one."""
        self._db.execute(
            "UPDATE sent SET handed = 1 WHERE device = ? AND lane = ? AND number = ?",
            (entry.device, entry.lane, entry.number),
        )

    def abandon(self) -> None:
        """Strike out what a crash left in doubt; called at a new life, before anything is noted."""
        self._db.execute("UPDATE sent SET handed = -1 WHERE handed = 0")

    def unhanded(self) -> list[Entry]:
        """Letters of which a crash hides whether they were handed over, in the order of their numbers."""
        return [
            Entry(*row)
            for row in self._db.execute(
                "SELECT device, lane, number, letter FROM sent WHERE handed = 0 ORDER BY device, lane, number"
            )
        ]

    def highest(self) -> dict[tuple[str, str], int]:
        """Last number by device and lane."""
        rows = self._db.execute("SELECT device, lane, max(number) FROM sent GROUP BY device, lane")
        return {(device, lane): number for device, lane, number in rows}

    def take(self, entry: Entry, life: str) -> bool:
        """Apply a letter once, whatever comes again; True if this was the time."""
        self._db.execute("BEGIN IMMEDIATE")
        effect = self._db.execute("SELECT 1 FROM taken WHERE letter = ? LIMIT 1", (entry.letter,)).fetchone() is None
        self._db.execute(
            "INSERT INTO taken (device, lane, number, letter, life, effect) VALUES (?, ?, ?, ?, ?, ?)",
            (entry.device, entry.lane, entry.number, entry.letter, life, effect),
        )
        self._db.execute("COMMIT")
        return effect

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def read_sent(path: Path, *, in_doubt: bool = True) -> list[Entry]:
    """Everything that a program handed over; with `in_doubt` also what it was about to."""
    where = "" if in_doubt else " WHERE handed = 1"
    query = f"SELECT device, lane, number, letter FROM sent{where} ORDER BY device, lane, number"
    return [Entry(*row) for row in _rows(path, query)]


def read_taken(path: Path) -> list[Run]:
    """Every run of a receiver, in order."""
    query = "SELECT device, lane, number, letter, life, effect FROM taken ORDER BY run"
    return [Run(Entry(*row[:4]), row[4], bool(row[5])) for row in _rows(path, query)]


def count(path: Path, table: str, lane: str | None = None) -> int:
    """Rows of `sent`, or effects of `taken`; of one lane, if one is named."""
    where = {"sent": "1", "taken": "effect"}[table] + ("" if lane is None else f" AND lane = '{lane}'")
    return int(_rows(path, f"SELECT count(*) FROM {table} WHERE {where}")[0][0])


def _rows(path: Path, query: str) -> list[Any]:
    if not path.exists():
        return [(0,)] if "count(" in query else []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)) as db:
        return db.execute(query).fetchall()
