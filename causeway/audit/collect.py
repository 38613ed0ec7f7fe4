"""Reads the ledgers: SQLite files of devices, streams and buckets of the platform. Read-only throughout."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

from nats.js.errors import NoKeysError, NotFoundError

from causeway.audit.compare import Dropped, Effect, Issued, Stored
from schemas.envelope import Verifier, parse
from schemas.ids import Address
from schemas.letters import read_up
from schemas.registry import EventReport
from schemas.topics import in_subject
from services.kit.bus import Bus
from services.kit.devices import OpenRecord, device_key
from services.kit.puller import scan

_WAY, _REPLAYED = "Causeway-Way", "replayed"


def read_outbox(path: Path, device: str) -> tuple[list[Issued], list[Dropped]]:
    """What a device's outbox says that it issued, and what it gave up."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        letters = [
            Issued(device, epoch, lane, sequence, letter, kind)
            for letter, epoch, lane, sequence, kind in database.execute(
                "SELECT id, epoch, lane, sequence, kind FROM letters"
            )
        ]
        dropped = [
            Dropped(device, epoch, lane, first, last)
            for epoch, lane, first, last in database.execute("SELECT epoch, lane, first, last FROM losses")
        ]
        highest = list(database.execute("SELECT epoch, lane, issued FROM lanes"))
    known = {(letter.epoch, letter.lane, letter.sequence) for letter in letters}
    # Numbers that the table no longer holds were issued all the same.
    forgotten = [
        Issued(device, epoch, lane, number, f"{epoch}/{lane}/{number}", "forgotten")
        for epoch, lane, issued in highest
        for number in range(1, issued + 1)
        if (epoch, lane, number) not in known
    ]
    return letters + forgotten, dropped


def waiting_letters(path: Path) -> int:
    """Letters of an outbox that have no receipt yet."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM letters WHERE state = 'waiting'").fetchone()[0])


async def read_in(bus: Bus) -> list[Stored]:
    """Every letter in IN, in its order."""
    found = []
    async for subject, raw in read_stream(bus, "IN", replays=False):
        levels = subject.split(".")
        if len(levels) != 5:
            continue  # a fence of the courier, not a letter
        event = json.loads(parse(raw).body)
        device = f"{levels[3]}/{levels[4]}"
        found.append(Stored(device, event["epoch"], event["lane"], event["sequence"], event["id"], levels[2]))
    return found


async def read_effects(bus: Bus) -> list[Effect]:
    """Every effect that the services keep: reports in rollouts, results in tasks, updates in the ledger of rounds."""
    effects: list[Effect] = []
    for key, turn in await _values(bus, "rollouts"):
        rollout, _, device = key.partition(".")
        if device:
            effects += [Effect(f"report {rollout}/{device}/{letter}", letter) for letter in turn["applied"]]
    for key, task in await _values(bus, "tasks"):
        effects += [Effect(f"result {key}", result["letter"]) for result in task["results"]]
    async for subject, raw in read_stream(bus, "ROUNDS"):
        entry = json.loads(raw)
        if entry["entry"] == "accepted":
            job = subject.rsplit(".", 1)[1]
            effects.append(Effect(f"update {job}/{entry['round']}/{entry['device']}", entry["letter"]))
    return effects


async def read_events(bus: Bus, open_record: OpenRecord, address: Address) -> list[EventReport]:
    """What a device reported, from its own signed envelopes in IN; each signature is checked here again.

    Raises:
        ContractError: if the device's record is not the registry's, or an envelope not the device's.
    """
    record = open_record((await (await bus.bucket("devices")).get(device_key(address))).value or b"", address)
    verifier = Verifier.from_base64(record.public_key)
    found = []
    async for _, raw in read_stream(bus, "IN", in_subject("event", address)):
        envelope = parse(raw)
        envelope.verify({verifier.keyid: verifier})
        found.append(read_up(envelope.body, "event").data)
    return found


async def read_stream(
    bus: Bus, stream: str, subject: str | None = None, *, replays: bool = True
) -> AsyncIterator[tuple[str, bytes]]:
    """Subject and bytes of each message, from the first to what was last when the reading began.

    Args:
        bus: the connection.
        stream: its name; one that is not there holds nothing.
        subject: only these messages.
        replays: also the letters that an operator had handed on once more; they were stored before.

    Raises:
        PullError: if the last was not reached though it is there: what is missing here would count as lost.
    """
    try:
        await bus.js.stream_info(stream)
    except NotFoundError:
        return
    async for message in scan(bus, stream, subject=subject):
        if replays or (message.headers or {}).get(_WAY) != _REPLAYED:
            yield message.subject, message.data


async def _values(bus: Bus, bucket: str) -> list[tuple[str, dict[str, Any]]]:
    """Keys and values of a bucket, read as plain JSON so that no service's own code is trusted."""
    try:
        store = await bus.js.key_value(bucket)
        keys = await store.keys()
    except (NoKeysError, NotFoundError):
        return []
    return [(key, json.loads(entry.value)) for key in keys if (entry := await store.get(key)).value]
