"""What a simulation found, beside what theory says, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from causeway.simulate.meetings import World
from causeway.simulate.run import HOUR_S, Outcome, Scenario
from causeway.simulate.statistics import Delay, Distribution
from causeway.simulate.theory import DirectDelivery, binary_spray, direct_meeting, epidemic, spray_and_wait_bound
from schemas.bundles import MAX_COPIES

QUANTILES = (50, 90, 99)
RESOLUTION_S = 0.5
"""Of the clock: a reconnect takes a part of it, which compression makes look long; below it nothing is compared."""
LINKS = "real MQTT over TLS to a real nats-server and courier; real outboxes on disk; links switched by the trace"
MEETINGS = "no network: who meets whom is simulated, what they hand over is decided by the devices' own routing"


def links_report(scenario: Scenario, outcome: Outcome) -> dict[str, Any]:
    """Direct delivery over links that come and go."""
    measured, theory = Distribution.of(outcome.delays), DirectDelivery(scenario.availability)
    possible = Distribution.of(outcome.possible)
    at_once, after_waiting = Distribution.of(outcome.connected), Distribution.of(_added(outcome))
    resolution = RESOLUTION_S * scenario.hours_per_s
    off = scenario.availability.off
    unit = off.mean if off is not None else None
    rows = {
        **{f"p{p}": (measured.quantile(p / 100), theory.quantile(p / 100)) for p in QUANTILES},
        "mean": (measured.limited_mean(scenario.hours), theory.limited_mean(scenario.hours)),
        "within_resolution": (measured.within(resolution), theory.within(resolution)),
        "within_run": (measured.within(scenario.hours), theory.within(scenario.hours)),
    }
    return {
        "what": LINKS,
        "source": scenario.availability.source,
        "letters": outcome.written,
        "delivered": measured.delivered,
        "twice": outcome.twice,
        "strangers": outcome.strangers,
        "share_on": scenario.availability.share_on,
        "mean_off_hours": unit,
        "hours": {name: {"simulated": here, "theory": there} for name, (here, there) in rows.items()},
        "units": None
        if unit is None
        else {
            name: {"simulated": None if here is None else here / unit, "theory": there / unit}
            for name, (here, there) in rows.items()
            if not name.startswith("within")
        },
        "whole_mean_hours": theory.mean,
        "resolution_hours": resolution,
        "largest_difference": measured.distance(theory.within, resolution),
        "largest_difference_to_trace": measured.distance(possible.within, resolution),
        "connected": _clock(at_once, scenario),
        "after_waiting": _clock(after_waiting, scenario),
    }


def meetings_report(world: World, delays: Mapping[str, tuple[Distribution, float]]) -> dict[str, Any]:
    """Delivery by carriers, in hours and in units of the mean meeting time."""
    theory = {
        "direct": direct_meeting(world.mean_meeting),
        "spray and wait": binary_spray(world.nodes, MAX_COPIES, world.mean_meeting),
        "epidemic": epidemic(world.nodes, world.mean_meeting),
    }
    bounds = {}
    if world.nodes > MAX_COPIES:
        bounds["spray and wait"] = spray_and_wait_bound(world.nodes, MAX_COPIES, world.mean_meeting)
    found = {}
    for name, (distribution, handed_over) in delays.items():
        mean = distribution.limited_mean(distribution.horizon)
        found[name] = {
            "letters": distribution.letters,
            "delivered": distribution.delivered,
            "handed_over": handed_over,
            "mean_hours": mean,
            **{f"p{p}_hours": distribution.quantile(p / 100) for p in QUANTILES},
            "units": mean / world.mean_meeting,
            "theory_units": theory[name] / world.mean_meeting,
            "theory_bound_units": bounds[name] / world.mean_meeting if name in bounds else None,
        }
    return {"what": MEETINGS, "nodes": world.nodes, "mean_meeting_hours": world.mean_meeting, "strategies": found}


def _added(outcome: Outcome) -> Iterator[Delay]:
    """What letters that found no link waited beyond the moment when it returned."""
    for delay, possible in zip(outcome.delays, outcome.possible, strict=True):
        if possible.delivered and possible.hours > 0:
            yield Delay(max(0.0, delay.hours - possible.hours), delay.delivered)


def _clock(found: Distribution, scenario: Scenario) -> dict[str, Any]:
    return {"letters": found.letters, **{f"p{p}_ms": _ms(found.quantile(p / 100), scenario) for p in QUANTILES}}


def _ms(hours: float | None, scenario: Scenario) -> float | None:
    """Of the clock, not of the trace: what the protocol itself takes."""
    return None if hours is None else hours / scenario.speed * HOUR_S * 1_000
