"""The outbox's tables. One SQLite file, meant to be read by other programs too.

| table | one row per | columns |
|---|---|---|
| meta | fact | `key`, `value`; `epoch` is the present one (ULID made with the file) |
| lanes | (epoch, lane) | `issued` highest sequence ever given out, `mark` highest known to be receipted |
| letters | letter still here | `id` ULID, `epoch`, `lane`, `sequence`, `kind`, `data` JSON, `time` and `receipted_at` in seconds since 1970, `bytes`, `state` waiting or receipted, `born` age clock at its adding, `latest` key that a newer letter of its kind replaces it by, `released` whether it may have been sent |
| losses | range given up | `epoch`, `lane`, `first`, `last`, `reason` (schemas.courier.LossReason), `letters` that were really there, `report` id of the letter that reports it, `maybe_arrived` whether some may have been sent |
| lost | letter given up and not reported | `epoch`, `lane`, `sequence`, `id`, `kind`; as many as `losses.MAX_NAMES` |
| released | (epoch, lane) | `upto`: letters up to this sequence may have been sent; noted ahead of them, so mostly a little too high |
| totals | (lane, state) | `letters`, `bytes`, kept by triggers |
| counters | name | `value`: dropped, superseded |

A letter is waiting as long as its sequence is above its lane's mark, and all that wait are of the present epoch.
"""  # noqa: E501

from __future__ import annotations

from sqlite3 import Connection

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lanes (
    epoch TEXT NOT NULL, lane TEXT NOT NULL, issued INTEGER NOT NULL, mark INTEGER NOT NULL,
    PRIMARY KEY (epoch, lane)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS letters (
    id TEXT PRIMARY KEY, epoch TEXT NOT NULL, lane TEXT NOT NULL, sequence INTEGER NOT NULL, kind TEXT NOT NULL,
    data TEXT NOT NULL, time REAL NOT NULL, bytes INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'waiting',
    receipted_at REAL, born REAL, latest TEXT, released INTEGER NOT NULL DEFAULT 0, UNIQUE (epoch, lane, sequence));
CREATE INDEX IF NOT EXISTS letters_by_receipt ON letters (receipted_at, sequence) WHERE state = 'receipted';
CREATE INDEX IF NOT EXISTS letters_latest ON letters (kind, latest) WHERE latest IS NOT NULL AND state = 'waiting';
CREATE TABLE IF NOT EXISTS losses (
    epoch TEXT NOT NULL, lane TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, reason TEXT NOT NULL,
    letters INTEGER NOT NULL, report TEXT, maybe_arrived INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (epoch, lane, first)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS losses_unreported ON losses (epoch, lane, first) WHERE report IS NULL;
CREATE TABLE IF NOT EXISTS lost (
    epoch TEXT NOT NULL, lane TEXT NOT NULL, sequence INTEGER NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL,
    PRIMARY KEY (epoch, lane, sequence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS released (
    epoch TEXT NOT NULL, lane TEXT NOT NULL, upto INTEGER NOT NULL, PRIMARY KEY (epoch, lane)) WITHOUT ROWID;
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

_ADDED = {
    "letters": {"born": "REAL", "latest": "TEXT", "released": "INTEGER NOT NULL DEFAULT 0"},
    "losses": {"report": "TEXT", "maybe_arrived": "INTEGER NOT NULL DEFAULT 0"},
}
"""Columns that files of version 0.1 lack."""


def upgrade(connection: Connection) -> None:
    """Give a file of an earlier version what it lacks; whoever comes second finds it done."""
    if not _lacking(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table, column, form in _lacking(connection):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {form}")
        # Of a waiting letter it is not known whether it was sent, and nobody has given it an age.
        connection.execute("UPDATE letters SET released = 1")
        connection.execute("UPDATE losses SET maybe_arrived = 1")
        connection.execute("DROP INDEX IF EXISTS letters_waiting")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _lacking(connection: Connection) -> list[tuple[str, str, str]]:
    found = []
    for table, columns in _ADDED.items():
        present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        found += [(table, name, form) for name, form in columns.items() if present and name not in present]
    return found
