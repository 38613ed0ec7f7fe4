"""Delays that mathematics predicts, to be put beside what was simulated. Pure; times in hours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import exp

from causeway.simulate.availability import Availability, integral

_BISECTIONS = 200
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class DirectDelivery:
    """A letter leaves at once while the link is there, else when it returns.

    Written at a random moment, it waits for what is left of an off-time: the residual life of an alternating renewal
    process, whose distribution is E[min(X, t)] / E[X] (Cox, Renewal Theory, 1962, chapter 5).
    """

    availability: Availability

    def within(self, t: float) -> float:
        """P(delay <= t)."""
        on, off = self.availability.share_on, self.availability.off
        return 1.0 if off is None else on + (1 - on) * off.limited(t) / off.mean

    def quantile(self, probability: float) -> float:
        """Smallest delay that this share of the letters stays within."""
        if self.within(0.0) >= probability:
            return 0.0
        low, high = 0.0, 1.0
        while self.within(high) < probability:
            high *= 2
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.within(middle) < probability else (low, middle)
        return high

    @property
    def mean(self) -> float:
        """E[delay]; for heavy tails a figure that no run of a bearable length can show."""
        off = self.availability.off
        return 0.0 if off is None else (1 - self.availability.share_on) * off.second_moment / (2 * off.mean)

    def limited_mean(self, t: float) -> float:
        """E[min(delay, t)]: what a run of finite length can be compared with."""
        return integral(lambda u: 1 - self.within(u), t)


def direct_meeting(mean_meeting: float) -> float:
    """E[delay] if only the origin delivers, and meets the destination after an exponential time."""
    return mean_meeting


def epidemic(nodes: int, mean_meeting: float) -> float:
    """E[delay] of epidemic routing: EMT H(M-1) / (M-1).

    M nodes with origin and destination, each pair meeting at exponential times (Groenevelt, Nain, Koole: The message
    delay in mobile ad hoc networks, Performance Evaluation 62, 2005).
    """
    _check(nodes)
    return mean_meeting * _harmonic(nodes - 1) / (nodes - 1)


def direct_meeting_within(mean_meeting: float, t: float) -> float:
    """P(delay <= t) if only the origin delivers."""
    return 1 - exp(-t / mean_meeting)


def epidemic_within(nodes: int, mean_meeting: float, t: float) -> float:
    """P(delay <= t) of epidemic routing in the mean-field limit: 1 - N / (N - 1 + e^(N t / EMT)), N = M - 1.

    Zhang, Neglia, Kurose, Towsley: Performance modeling of epidemic routing, Computer Networks 51, 2007.
    """
    _check(nodes)
    others = nodes - 1
    growth = min(others * t / mean_meeting, _LARGEST_EXPONENT)
    return 1 - others / (others - 1 + exp(growth))


def spray_and_wait_bound(nodes: int, copies: int, mean_meeting: float) -> float:
    """Upper bound of E[delay] with L copies: (H(M-1) - H(M-L)) EMT + (M-L)/(M-1) EMT/L.

    Spyropoulos, Psounis, Raghavendra: Spray and Wait, WDTN 2005; made for source spraying, and tight for L << M.
    """
    _check(nodes)
    if not 1 <= copies < nodes:
        raise ValueError(f"{copies} copies among {nodes} nodes: there must be fewer copies than nodes")
    spray = _harmonic(nodes - 1) - _harmonic(nodes - copies)
    return mean_meeting * (spray + (nodes - copies) / (nodes - 1) / copies)


def binary_spray(nodes: int, copies: int, mean_meeting: float) -> float:
    """E[delay] of binary spray and wait, exact for exponential meetings: an absorbing Markov chain.

    A state is the number of copies of each holder; each holder meets the destination at rate 1/EMT, and each that has
    more than one meets a node without any at rate (M - 1 - holders)/EMT and gives half of them away.
    """
    _check(nodes)

    @cache
    def remaining(state: tuple[int, ...]) -> float:
        without = max(0, nodes - 1 - len(state))
        spreaders = [copies for copies in state if copies > 1]
        rate = len(state) + without * len(spreaders)
        later = 0.0
        if without:
            for held in spreaders:
                rest = list(state)
                rest.remove(held)
                later += without * remaining(tuple(sorted([*rest, held // 2, held - held // 2])))
        return (1 + later) / rate

    return mean_meeting * remaining((copies,))


def _harmonic(n: int) -> float:
    return sum(1 / i for i in range(1, n + 1))


def _check(nodes: int) -> None:
    if nodes < 2:
        raise ValueError(f"{nodes} nodes: an origin and a destination are needed")
