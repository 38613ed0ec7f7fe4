"""What the link does: how fast it is, and so how much may wait in front of it; how much it loses. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

BACKLOG_S = 1.0
"""What waits for the network is worth this much time, beside what fills the path itself."""
MIN_BACKLOG_BYTES = 8 * 1024
START_BACKLOG_BYTES = 16 * 1024
"""While no rate is known: 2.6 s of a link of 50 kbit/s."""
MAX_BACKLOG_BYTES = 512 * 1024
MIN_BYTES_PER_S = 1_000.0
"""A link that stalls is not believed to be slower, so that its recovery is noticed."""
SAMPLE_S = 1.0
"""Least time over which a rate is taken from a link that is busy all the while."""
_MEMORY_S = 3.0
"""After so long at another rate, two thirds of the estimate are new."""
HALF_LIFE_SENT = 100
"""After so many more, what was counted before weighs half."""
MIN_SENT = 20
"""Of fewer nothing is concluded."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """The rate of one direction of one connection, learned from what the other end has acknowledged.

    Attributes:
        bytes_per_s: None until something was measured.
    """

    bytes_per_s: float | None = None

    def with_sample(self, delivered: int, took_s: float, *, limited: bool) -> Throughput:
        """Learn from one spell of sending.

        Args:
            delivered: bytes that left the last buffer of this end.
            took_s: seconds, in all of which something waited.
            limited: more was there to be sent than was let through. Otherwise the link may be faster than what was
                asked of it, so that a lower figure says nothing.
        """
        sample = max(MIN_BYTES_PER_S, delivered / max(took_s, 1e-3))
        if self.bytes_per_s is None:
            return Throughput(sample) if limited else self
        if sample > self.bytes_per_s:
            # The estimate itself may be what holds a faster link back; but a burst is no link.
            return Throughput(min(sample, 2 * self.bytes_per_s))
        weight = 1 - math.exp(-took_s / _MEMORY_S) if limited else 0.0
        return Throughput(self.bytes_per_s + weight * (sample - self.bytes_per_s))

    def backlog_bytes(self, round_trip_s: float) -> int:
        """How much may be unacknowledged before more is held back.

        Twice what fills the path, so that a rate which is estimated too low can grow, and a second's worth.
        """
        if self.bytes_per_s is None:
            return START_BACKLOG_BYTES
        return int(min(MAX_BACKLOG_BYTES, max(MIN_BACKLOG_BYTES, self.bytes_per_s * (BACKLOG_S + 2 * round_trip_s))))


@dataclass(frozen=True, slots=True)
class LossMeter:
    """Share of what was sent that had to be sent again, with the past fading.

    Attributes:
        sent: fading count, repetitions included.
        again: of these.
        totals: the counts of the last look.
    """

    sent: float = 0.0
    again: float = 0.0
    totals: tuple[int, int] = (0, 0)

    @property
    def ratio(self) -> float | None:
        """None while too little was sent to say."""
        return None if self.sent < MIN_SENT else min(1.0, self.again / self.sent)

    def with_totals(self, sent: int, again: int) -> LossMeter:
        """Learn from counts since some beginning; lower ones are a new beginning."""
        sent_before, again_before = self.totals if sent >= self.totals[0] and again >= self.totals[1] else (0, 0)
        more = sent - sent_before
        if not more:
            return replace(self, totals=(sent, again))
        fade = 0.5 ** (more / HALF_LIFE_SENT)
        # What the new ones weigh together, as if each had faded for itself.
        weight = min(float(more), (1 - fade) * HALF_LIFE_SENT / math.log(2))
        share = (again - again_before) / more
        return LossMeter(self.sent * fade + weight, self.again * fade + weight * share, (sent, again))
