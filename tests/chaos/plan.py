"""Which faults come when: from a seed, the same list every time. Pure; `storm.py` carries it out."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal[
    "bus_killed",
    "bus_restarted",
    "courier_killed",
    "courier_frozen",
    "standby_killed",
    "poster_killed",
    "agents_killed",
    "link_cut",
    "link_slow",
    "link_far",
    "link_lossy",
]

LASTS_S: dict[Kind, tuple[float, float]] = {
    "bus_killed": (0.5, 3.0),
    "bus_restarted": (0.2, 1.0),
    "courier_killed": (0.5, 4.0),
    # Longer than the lease lives (3 s), so that the frozen one wakes up beside its successor.
    "courier_frozen": (4.0, 9.0),
    "standby_killed": (0.5, 4.0),
    "poster_killed": (0.2, 2.0),
    "agents_killed": (0.2, 5.0),
    "link_cut": (5.0, 30.0),
    "link_slow": (10.0, 30.0),
    "link_far": (10.0, 30.0),
    "link_lossy": (10.0, 30.0),
}
"""How long a process stays down or frozen, or a link bad."""

_WEIGHTS: dict[Kind, int] = {
    "bus_killed": 3,
    "bus_restarted": 2,
    "courier_killed": 4,
    "courier_frozen": 2,
    "standby_killed": 1,
    "poster_killed": 1,
    "agents_killed": 5,
    "link_cut": 5,
    "link_slow": 3,
    "link_far": 3,
    "link_lossy": 3,
}
KINDS: tuple[Kind, ...] = tuple(LASTS_S)
AT_SITES = frozenset({"agents_killed", "link_cut", "link_slow", "link_far", "link_lossy"})
LINKS = frozenset({"link_cut", "link_slow", "link_far", "link_lossy"})
MAX_SHARE = 0.25
"""Of the whole time that one fault may take, so that a short plan has room for several."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        at_s: since the beginning of the load.
        lasts_s: until it is mended.
        site: number of the place that it hits; None for the platform.
    """

    at_s: float
    kind: Kind
    lasts_s: float
    site: int | None = None

    def __str__(self) -> str:
        where = "" if self.site is None else f" at site {self.site}"
        return f"{self.at_s:6.1f} s {self.kind}{where} for {self.lasts_s:.1f} s"


def make_plan(seed: int, duration_s: float, sites: int, count: int) -> list[Fault]:
    """At least one of every kind, then by weight; spread over the time; every one mended by its end.

    A link has one fault at a time: of two that meet at a site the later moves to a site that is free then, and is left
    out if there is none.
    """
    chance = random.Random(seed)
    kinds = [*KINDS, *chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=max(0, count - len(KINDS)))]
    chance.shuffle(kinds)
    step = duration_s / len(kinds)
    plan: list[Fault] = []
    for number, kind in enumerate(kinds):
        low, high = LASTS_S[kind]
        lasts = min(chance.uniform(low, high), duration_s * MAX_SHARE)
        at = (number + chance.random()) * step * (1 - lasts / duration_s)
        fault = Fault(round(at, 2), kind, round(lasts, 2))
        if kind in AT_SITES:
            order = chance.sample(range(sites), sites)
            site = next((site for site in order if kind not in LINKS or _is_free(plan, site, fault)), None)
            if site is None:
                continue
            fault = replace(fault, site=site)
        plan.append(fault)
    return sorted(plan, key=lambda fault: fault.at_s)


def scaled(plan: list[Fault], factor: float) -> list[Fault]:
    """The same faults at `factor` times their pace; what lasts a moment lasts as long as before."""
    return [replace(fault, at_s=fault.at_s * factor, lasts_s=fault.lasts_s * factor) for fault in plan]


def count_by_kind(plan: list[Fault]) -> dict[str, int]:
    """How often each kind comes."""
    return dict(sorted(Counter(str(fault.kind) for fault in plan).items()))


def _is_free(plan: list[Fault], site: int, fault: Fault) -> bool:
    end = fault.at_s + fault.lasts_s
    return not any(
        other.site == site and other.kind in LINKS and other.at_s < end and fault.at_s < other.at_s + other.lasts_s
        for other in plan
    )
