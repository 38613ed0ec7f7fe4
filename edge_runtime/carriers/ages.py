"""How old something is on a device that may have no clock. Pure.

While the machine runs, its monotonic time counts. A time without power is the difference of the clocks, unless that is
no plausible one: a clock that was set forward or back by more than any bundle lives says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.bundles import MAX_LIFETIME_S


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, as far as this machine knows it.

    Attributes:
        boot: names the run of the machine.
        since_boot_s: monotonic, counts through standby.
        clock_s: seconds since 1970, which may jump.
    """

    boot: str
    since_boot_s: float
    clock_s: float


def elapsed_s(then: Moment, now: Moment) -> float:
    """Seconds between two moments, never negative."""
    if then.boot == now.boot:
        return max(0.0, now.since_boot_s - then.since_boot_s)
    dark = now.clock_s - then.clock_s
    return dark if 0.0 <= dark <= MAX_LIFETIME_S else 0.0
