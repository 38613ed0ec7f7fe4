"""Reads every ledger at the end: programs', the office's, IN itself, and the loss ledgers in it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from causeway.audit.collect import read_stream
from schemas.envelope import parse
from services.kit.bus import connect
from services.kit.permissions import AUDITOR
from tests.chaos.compare import Applied, Arrived, Given, Place, Posted, Sent
from tests.chaos.ledger import count, read_sent, read_taken
from tests.chaos.office import DOWN
from tests.chaos.site import LEDGER
from tests.chaos.stage import Stage

BUSY_S = 10.0
OFFICE_LEDGER = "office.db"


@dataclass
class Ledgers:
    """Everything that `compare` needs."""

    sent: list[Sent] = field(default_factory=list)
    arrived: list[Arrived] = field(default_factory=list)
    effects: list[Arrived] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    dropped_here: Counter[Place] = field(default_factory=Counter)
    posted: dict[str, list[Posted]] = field(default_factory=lambda: defaultdict(list))
    applied: dict[str, list[Applied]] = field(default_factory=lambda: defaultdict(list))
    """Both by lane of the office."""
    reports: Counter[str] = field(default_factory=Counter)
    """What the runtimes reported by themselves, by name and reason."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the load is."""

    sent: int
    waiting: dict[str, int]
    """By device, where letters wait for a receipt."""
    posted: int
    applied: int


def outboxes(stage: Stage) -> list[Path]:
    """Of all devices."""
    return [stage.device_folder(number) / "state" / "outbox.db" for number in range(stage.load.devices)]


def programs(stage: Stage) -> list[Path]:
    """Ledgers of all devices' programs."""
    return [stage.device_folder(number) / LEDGER for number in range(stage.load.devices)]


def progress(stage: Stage) -> Progress:
    """Counts only; read while everything runs."""
    office = stage.root / OFFICE_LEDGER
    return Progress(
        sent=sum(count(path, "sent") for path in programs(stage)),
        waiting={
            name: left for name, path in zip(stage.load.names, outboxes(stage), strict=True) if (left := _left(path))
        },
        posted=count(office, "sent", DOWN),
        applied=sum(count(path, "taken", DOWN) for path in programs(stage)),
    )


async def collect(stage: Stage) -> Ledgers:
    """Read it all."""
    ledgers = Ledgers()
    for name, program, outbox in zip(stage.load.names, programs(stage), outboxes(stage), strict=True):
        ledgers.sent += [Sent(e.device, e.lane, e.number, e.letter) for e in read_sent(program)]
        for run in read_taken(program):
            applied = Applied(name, run.entry.number, run.entry.letter, run.life, run.effect)
            ledgers.applied[run.entry.lane].append(applied)
        for lane, letters in _rows(outbox, "SELECT lane, sum(letters) FROM losses GROUP BY lane"):
            ledgers.dropped_here[name, lane] += letters
    office = stage.root / OFFICE_LEDGER
    for entry in read_sent(office):
        ledgers.posted[entry.lane].append(Posted(entry.device, entry.number, entry.letter))
    ledgers.effects = [
        Arrived(run.entry.device, run.entry.lane, run.entry.number, run.entry.letter)
        for run in read_taken(office)
        if run.effect
    ]
    bus = await connect(stage.state, stage.settings, AUDITOR)
    try:
        async for subject, raw in read_stream(bus, "IN"):
            levels = subject.split(".")
            if len(levels) == 5:
                _read(ledgers, levels[2], levels[4], json.loads(parse(raw).body))
    finally:
        await bus.close()
    return ledgers


def _read(ledgers: Ledgers, kind: str, device: str, event: dict[str, object]) -> None:
    data = event["data"]
    assert isinstance(data, dict)
    if kind == "losses":
        for loss in data["losses"]:
            named = frozenset(letter["id"] for letter in loss.get("names", []))
            ledgers.given.append(Given(device, loss["lane"], loss["letters"], named, loss["maybe_arrived"]))
        return
    if kind == "event":
        ledgers.reports[f"{data['name']} {data.get('reason', '')}".strip()] += 1
        return
    told = data.get("output", {}) if kind == "result" else data
    if kind in {"result", "sample", "refused"} and "number" in told:
        ledgers.arrived.append(
            Arrived(
                device, told["lane"], told["number"], str(event["id"]), str(event["epoch"]), int(str(event["sequence"]))
            )
        )


def _left(outbox: Path) -> int:
    return int(_rows(outbox, "SELECT count(*) FROM letters WHERE state = 'waiting'")[0][0])


def _rows(path: Path, query: str) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)) as db:
        return db.execute(query).fetchall()
