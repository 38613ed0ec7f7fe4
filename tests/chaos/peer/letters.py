"""A letter of the peer on the wire, of about the size of a program's letter."""

from __future__ import annotations

import json

from tests.chaos.ledger import Entry

_PAD = "x" * 100


def write(entry: Entry) -> bytes:
    """As JSON."""
    return json.dumps([entry.device, entry.lane, entry.number, entry.letter, _PAD]).encode()


def read(raw: bytes) -> Entry:
    """The reverse."""
    device, lane, number, letter, _ = json.loads(raw)
    return Entry(device, lane, number, letter)


def up_topic(entry: Entry) -> str:
    """Where a device publishes."""
    return f"up/{entry.device}/{entry.lane}"


def down_topic(device: str) -> str:
    """Where a device listens."""
    return f"down/{device}"
