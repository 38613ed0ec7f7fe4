"""The distribution of delays of which some are not over yet. Pure.

A letter that was not delivered when the run ended is not lost and not late by any known time: it is censored. Kaplan
and Meier (1958) estimate the distribution from both kinds; leaving the undelivered ones out would flatter it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Self


@dataclass(frozen=True, slots=True)
class Delay:
    """Of one letter: until its delivery, or until the run ended without it."""

    hours: float
    delivered: bool


@dataclass(frozen=True, slots=True)
class Distribution:
    """Steps of P(delay <= t).

    Attributes:
        steps: times and the probability from each on, rising.
        letters: how many it rests on.
        delivered: of these.
        horizon: up to which it says anything.
    """

    steps: tuple[tuple[float, float], ...]
    letters: int
    delivered: int
    horizon: float

    @classmethod
    def of(cls, delays: Iterable[Delay]) -> Self:
        """Kaplan-Meier estimate; at the same moment deliveries come before ends."""
        ordered = sorted(delays, key=lambda delay: (delay.hours, not delay.delivered))
        at_risk, waiting = len(ordered), 1.0
        steps: list[tuple[float, float]] = []
        for delay in ordered:
            if delay.delivered:
                waiting *= 1 - 1 / at_risk
                if steps and steps[-1][0] == delay.hours:
                    steps.pop()
                steps.append((delay.hours, 1 - waiting))
            at_risk -= 1
        horizon = ordered[-1].hours if ordered else 0.0
        return cls(tuple(steps), len(ordered), sum(delay.delivered for delay in ordered), horizon)

    def within(self, t: float) -> float:
        """P(delay <= t)."""
        reached = 0.0
        for at, probability in self.steps:
            if at > t:
                break
            reached = probability
        return reached

    def quantile(self, probability: float) -> float | None:
        """Delay that this share stays within; None if the run was too short to say."""
        return next((at for at, reached in self.steps if reached >= probability - 1e-12), None)

    def limited_mean(self, t: float) -> float:
        """E[min(delay, t)]: the area above the steps up to t."""
        edges = [(0.0, 0.0), *((at, p) for at, p in self.steps if at < t), (t, 1.0)]
        return sum((after - before) * (1 - p) for (before, p), (after, _) in pairwise(edges))

    def distance(self, theory: Callable[[float], float], start: float = 0.0) -> float:
        """Largest difference to a distribution function from `start` on (Kolmogorov and Smirnov)."""
        largest = abs(theory(start) - self.within(start))
        before = self.within(start)
        for at, probability in self.steps:
            if at <= start:
                continue
            expected = theory(at)
            largest = max(largest, abs(expected - before), abs(expected - probability))
            before = probability
        return largest
