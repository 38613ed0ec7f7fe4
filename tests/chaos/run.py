"""One run against the platform: start, load, faults, settling, ledgers, findings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.collect import Ledgers, Progress, collect, progress
from tests.chaos.compare import Findings, compare_boards, compare_down, compare_effects, compare_up
from tests.chaos.network import lay_out
from tests.chaos.office import BOARD, DOWN
from tests.chaos.plan import Fault, count_by_kind
from tests.chaos.processes import ChaosError
from tests.chaos.stage import Load, Stage
from tests.chaos.storm import Storm
from tests.support.netns import Net

HANDLED_LANE = "normal"
POLL_S = 1.0
TELL_S = 15.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take after the last fault is mended."""

    settle_s: float
    ledger_s: float = 60.0
    """For the last loss ledgers and the handler's last effects."""


async def run(
    root: Path, load: Load, plan: list[Fault], seed: int, limits: Limits, say: Callable[[str], None]
) -> dict[str, Any]:
    """The whole of it; returns the part of the report that is about the platform."""
    with Net() as net:
        host, sites = lay_out(net, load.sites)
        stage = Stage(root, load, host, sites)
        try:
            say(f"platform at {host} in {root}; enrolling {load.devices} devices at {load.sites} sites")
            began = time.monotonic()
            await stage.start()
            say(f"all are up after {time.monotonic() - began:.0f} s; {load.up} letters up and {load.down} down begin")
            stage.begin()
            began = time.monotonic()
            storm = Storm(plan, seed, say)
            await storm.blow(stage.hit)
            rest = load.duration_s - (time.monotonic() - began)
            await asyncio.sleep(max(0.0, rest))
            say("every fault is mended; settling")
            mended = time.monotonic()
            unsettled = await settle(stage, limits.settle_s, say)
            ledgers, findings = await judge(stage, limits.ledger_s)
            took = time.monotonic() - mended
            return report(stage, storm, ledgers, findings) | {
                "took_to_settle_s": round(took, 1),
                "unsettled": unsettled,
                "letters_per_s": round(len(ledgers.arrived) / (time.monotonic() - began), 1),
            }
        finally:
            await stage.crew.close()


async def settle(stage: Stage, limit_s: float, say: Callable[[str], None]) -> str | None:
    """Wait until all is sent, receipted, posted and applied; None, or what was still missing at the end."""
    deadline = time.monotonic() + limit_s
    told = time.monotonic()
    while True:
        seen = await asyncio.to_thread(progress, stage)
        if _is_settled(seen, stage.load):
            return None
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            say(f"still settling: {seen}")
        if time.monotonic() > deadline:
            return f"not settled {limit_s:.0f} s after the last fault: {seen}"
        await asyncio.sleep(POLL_S)


async def judge(stage: Stage, limit_s: float) -> tuple[Ledgers, Findings]:
    """Compare; what is not there yet though settled (loss ledgers, effects) is looked for again within a bound."""
    deadline = time.monotonic() + limit_s
    while True:
        ledgers = await collect(stage)
        findings = compare(ledgers)
        if findings.clean or time.monotonic() > deadline:
            return ledgers, findings
        await asyncio.sleep(POLL_S)


def compare(ledgers: Ledgers) -> Findings:
    """All comparisons together."""
    return (
        compare_up(ledgers.sent, ledgers.arrived, ledgers.given, ledgers.dropped_here)
        + compare_effects(ledgers.effects, ledgers.arrived, HANDLED_LANE)
        + compare_down(ledgers.posted[DOWN], ledgers.applied[DOWN])
        + compare_boards(ledgers.posted[BOARD], ledgers.applied[BOARD])
    )


def report(stage: Stage, storm: Storm, ledgers: Ledgers, findings: Findings) -> dict[str, Any]:
    """What is written."""
    if storm.errors:
        raise ChaosError(f"carry out the plan: {len(storm.errors)} faults could not be made: {storm.errors[:3]}")
    return {
        "letters_up": len(ledgers.sent),
        "letters_down": len(ledgers.posted[DOWN]),
        "boards_down": len(ledgers.posted[BOARD]),
        "faults": len(storm.plan),
        "lost": findings.lost,
        "applied_twice": findings.applied_twice,
        "out_of_order": findings.out_of_order,
        "drops_not_in_ledger": findings.drops_not_in_ledger,
        "policy_drops": findings.policy_drops,
        "dropped_but_arrived": findings.dropped_but_arrived,
        "denied_but_arrived": findings.denied_but_arrived,
        "down_overtaken": findings.down_overtaken,
        "stored_in_in": len(ledgers.arrived),
        "effects_of_handler": len(ledgers.effects),
        "handler_runs_again_after_a_crash": sum(not run.effect for run in ledgers.applied[DOWN]),
        "devices": stage.load.devices,
        "sites": stage.load.sites,
        "faults_by_kind": count_by_kind(storm.plan),
        "reported_by_runtimes": dict(ledgers.reports),
        "ended_by_themselves": dict(stage.crew.own_ends),
        "agents_ended_by_themselves": sum(n for who, n in stage.crew.own_ends.items() if who.startswith("site")),
        "examples": dict(findings.examples),
    }


def _is_settled(seen: Progress, load: Load) -> bool:
    return seen.sent == load.up and not seen.waiting and seen.posted == load.down and seen.applied == load.down
