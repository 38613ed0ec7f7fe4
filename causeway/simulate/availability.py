"""When a device has a link: alternating renewal processes, each begun in its steady state. Pure; times in hours.

`seti` is the fit to the hosts of SETI@home: on-times Weibull, off-times log-normal (Javadi, Kondo, Vincent, Anderson:
Mining for Statistical Models of Availability in Large-Scale Distributed Systems, MASCOTS 2009; Discovering Statistical
Models of Availability in Large Distributed Systems: An Empirical Study of SETI@home, IEEE TPDS 22(11), 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import erf, exp, gamma, log, sqrt
from random import Random
from typing import Protocol

_STEPS = 4_000


class Duration(Protocol):
    """How long a link stays as it is."""

    @property
    def mean(self) -> float:
        """Hours; may be infinite in other fits, never in these."""

    @property
    def second_moment(self) -> float:
        """Square hours."""

    def sample(self, random: Random) -> float:
        """One draw."""

    def residual(self, random: Random) -> float:
        """What is left at a random moment within one: a length-biased draw times a uniform one."""

    def limited(self, t: float) -> float:
        """E[min(X, t)], which is the integral of P(X > u) up to t."""


@dataclass(frozen=True, slots=True)
class LogNormal:
    """ln X is normal with `mu` and `sigma`."""

    mu: float
    sigma: float

    @property
    def mean(self) -> float:
        """As in `Duration`."""
        return exp(self.mu + self.sigma**2 / 2)

    @property
    def second_moment(self) -> float:
        """As in `Duration`."""
        return exp(2 * self.mu + 2 * self.sigma**2)

    def sample(self, random: Random) -> float:
        """As in `Duration`."""
        return random.lognormvariate(self.mu, self.sigma)

    def residual(self, random: Random) -> float:
        """As in `Duration`; length-biased it is log-normal with mu + sigma^2."""
        return random.random() * random.lognormvariate(self.mu + self.sigma**2, self.sigma)

    def limited(self, t: float) -> float:
        """As in `Duration`, in closed form."""
        if t <= 0:
            return 0.0
        z = (log(t) - self.mu) / self.sigma
        return self.mean * _normal(z - self.sigma) + t * (1 - _normal(z))


@dataclass(frozen=True, slots=True)
class Weibull:
    """P(X > t) = exp(-(t / scale)^shape)."""

    shape: float
    scale: float

    @property
    def mean(self) -> float:
        """As in `Duration`."""
        return self.scale * gamma(1 + 1 / self.shape)

    @property
    def second_moment(self) -> float:
        """As in `Duration`."""
        return self.scale**2 * gamma(1 + 2 / self.shape)

    def sample(self, random: Random) -> float:
        """As in `Duration`."""
        return random.weibullvariate(self.scale, self.shape)

    def residual(self, random: Random) -> float:
        """As in `Duration`; length-biased, (X / scale)^shape is a gamma variable of shape 1 + 1/shape."""
        biased = self.scale * random.gammavariate(1 + 1 / self.shape, 1.0) ** (1 / self.shape)
        return float(random.random() * biased)

    def limited(self, t: float) -> float:
        """As in `Duration`, by numbers."""
        return integral(lambda u: exp(-((u / self.scale) ** self.shape)), t)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    hours: float

    @property
    def mean(self) -> float:
        """As in `Duration`."""
        return self.hours

    @property
    def second_moment(self) -> float:
        """As in `Duration`."""
        return self.hours**2

    def sample(self, random: Random) -> float:
        """As in `Duration`."""
        del random
        return self.hours

    def residual(self, random: Random) -> float:
        """As in `Duration`."""
        return random.random() * self.hours

    def limited(self, t: float) -> float:
        """As in `Duration`."""
        return min(max(t, 0.0), self.hours)


@dataclass(frozen=True, slots=True)
class Availability:
    """A link that is there for `on`, away for `off`, and so on; never away if `off` is None."""

    on: Duration
    off: Duration | None
    source: str

    @property
    def share_on(self) -> float:
        """Probability that the link is there at a random moment."""
        return 1.0 if self.off is None else self.on.mean / (self.on.mean + self.off.mean)

    def periods(self, random: Random, hours: float) -> Iterator[tuple[float, float]]:
        """Begin and end of each time with a link, up to a horizon."""
        if self.off is None:
            yield 0.0, hours
            return
        on = random.random() < self.share_on
        now = 0.0
        length = (self.on if on else self.off).residual(random)
        while now < hours:
            if on:
                yield now, min(hours, now + length)
            now += length
            on = not on
            length = (self.on if on else self.off).sample(random)


TRACES = {
    "seti": Availability(Weibull(0.393, 2.964), LogNormal(-0.586, 2.844), "SETI@home fit, Javadi et al. 2009, 2011"),
    "diurnal": Availability(Fixed(8.0), Fixed(16.0), "eight hours a day, at a time of day of each device's own"),
    "always": Availability(Fixed(1.0), None, "the link is never away"),
}


def integral(f: Callable[[float], float], end: float) -> float:
    """From 0 to `end` by Simpson's rule over t = end v^4, since what is integrated here changes most near zero."""
    if end <= 0:
        return 0.0

    def weighted(v: float) -> float:
        return f(end * v**4) * 4 * end * v**3

    inner = sum((4 if i % 2 else 2) * weighted(i / _STEPS) for i in range(1, _STEPS))
    return (weighted(0.0) + inner + weighted(1.0)) / (3 * _STEPS)


def _normal(z: float) -> float:
    return (1 + erf(z / sqrt(2))) / 2
