"""Which letters of a lane go next, and which go again. Pure: the postman carries it out.

The courier admits a lane's letters in order and drops what is early, so a loss is mended by going back to the letter
after the mark (go-back-N, RFC 3366), and the window grows with progress and halves with each silence (RFC 5681).
Where silence follows silence, one letter at a time asks whether anybody is there again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from schemas.events import Lane

MIN_WINDOW = 4
START_WINDOW = 16
MAX_WINDOW = 128

MIN_WAIT_S = 1.0
MAX_WAIT_S = 30.0
PROBE_S = 10.0
"""Waits double up to this, or to what a receipt takes where that is longer."""
PROBES_AFTER = 2
"""Silences in a row after which a single letter goes again instead of a window; so it may go sooner for the load."""
QUESTIONS_APART = 3
"""A silence that goes on is followed by hello only now and then: a courier that is late has enough to do."""
_MAX_DOUBLINGS = 5
COALESCING_S = 0.5
"""The courier may hold a receipt back for 250 ms; twice that is no sign of loss."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What the state of link and device allows (`policy.Decisions`).

    Attributes:
        window: letters of a lane on their way at most.
        bulk: whether that lane moves, only while no other has anything to send, or not at all.
        congestion: how TCP finds its rate.
    """

    window: int = MAX_WINDOW
    bulk: Literal["moves", "yields", "held"] = "moves"
    congestion: Literal["system", "bbr"] = "system"


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive sequences that the outbox holds, beginning with the lowest above the mark."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Flight:
    """What is on its way in one lane.

    Attributes:
        mark: the courier's mark, as of its last receipt.
        sent: highest sequence sent since the last going back.
        since: when the present wait for a receipt began.
        silences: waits in a row that ended without progress.
        timed: the letter whose time to its receipt is being taken; 0 if none is.
        timed_at: when it was sent.
    """

    mark: int = 0
    sent: int = 0
    window: int = START_WINDOW
    since: float = 0.0
    silences: int = 0
    timed: int = 0
    timed_at: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether something is unanswered."""
        return self.sent > self.mark


@dataclass(frozen=True, slots=True)
class Plan:
    """Send `run` (None: nothing), then be in `flight`; look again at `due` (None: when something happens)."""

    run: Run | None
    flight: Flight
    due: float | None


def plan(flight: Flight, held: Run | None, now: float, wait_s: float, granted: int = MAX_WINDOW) -> Plan:
    """Decide what to send of one lane.

    A gap in the outbox ends the run: what lies behind it is sent once the letters before it are receipted, since its
    floor tells the courier to skip whatever has not come.

    Args:
        flight: state of the lane.
        held: first run above the mark; None if all is receipted.
        now: monotonic seconds.
        wait_s: how long a receipt may take.
        granted: letters on their way at most, whatever the window.
    """
    if held is None:
        return Plan(None, replace(flight, sent=flight.mark, silences=0, timed=0), None)
    if flight.waits and now >= _deadline(flight, wait_s):
        flight = replace(
            flight,
            sent=flight.mark,
            window=max(MIN_WINDOW, flight.window // 2),
            since=now,
            silences=flight.silences + 1,
            timed=0,
        )
    first = max(flight.sent + 1, held.first)
    window = 1 if flight.silences >= PROBES_AFTER else min(flight.window, granted)
    last = min(held.last, held.first - 1 + window)
    if first > last:
        return Plan(None, flight, _deadline(flight, wait_s) if flight.waits else None)
    if not flight.waits:
        flight = replace(flight, since=now)
    if not flight.timed and not flight.silences:
        # Of a letter that was sent twice nobody knows which copy the receipt is for (Karn).
        flight = replace(flight, timed=last, timed_at=now)
    flight = replace(flight, sent=last)
    return Plan(Run(first, last), flight, _deadline(flight, wait_s))


def is_in_doubt(before: Flight, after: Flight) -> bool:
    """Whether one more silence is a reason to say hello again: a new courier may not know the session."""
    silences = after.silences
    often = silences <= _MAX_DOUBLINGS or silences % QUESTIONS_APART == 0
    return silences > before.silences and silences >= PROBES_AFTER and often


def cut_short(flight: Flight, sent: int) -> Flight:
    """The flight if the link took letters only up to `sent`."""
    sent = max(flight.mark, sent)
    return replace(flight, sent=sent, timed=flight.timed if flight.timed <= sent else 0)


def sample_s(flight: Flight, mark: int, now: float) -> float | None:
    """Time from a letter to the receipt with this mark, if that is the one whose time is being taken."""
    return now - flight.timed_at if flight.timed and mark >= flight.timed else None


def receipted(flight: Flight, mark: int, now: float) -> Flight:
    """Take in the courier's mark; one that went backwards makes everything above it go again."""
    if mark > flight.mark:
        grown = min(MAX_WINDOW, flight.window + mark - flight.mark)
        timed = flight.timed if flight.timed > mark else 0
        sent = max(flight.sent, mark)
        return replace(flight, mark=mark, sent=sent, window=grown, since=now, silences=0, timed=timed)
    if mark < flight.mark:
        return replace(flight, mark=mark, sent=mark, since=now, silences=0, timed=0)
    return flight


def under_way(flight: Flight, now: float) -> Flight:
    """The link still holds some of what was sent: nothing of it is lost, and the wait for a receipt has not begun."""
    return replace(flight, since=now) if flight.waits else flight


def recalled(flight: Flight, first: int, now: float) -> Flight:
    """Send again from `first` on; what was not receipted yet is never passed over."""
    return receipted(flight, min(flight.mark, first - 1), now)


def _deadline(flight: Flight, wait_s: float) -> float:
    return flight.since + max(wait_s, min(PROBE_S, wait_s * float(1 << min(_MAX_DOUBLINGS, flight.silences))))


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Smoothed time from a letter to its receipt (RFC 6298)."""

    mean_s: float | None = None
    deviation_s: float = 0.0

    def with_sample(self, sample_s: float) -> RoundTrip:
        """Learn one more; samples of letters that were sent twice must not be given (Karn)."""
        if self.mean_s is None:
            return RoundTrip(sample_s, sample_s / 2)
        deviation = 0.75 * self.deviation_s + 0.25 * abs(self.mean_s - sample_s)
        return RoundTrip(0.875 * self.mean_s + 0.125 * sample_s, deviation)

    @property
    def wait_s(self) -> float:
        """How long to wait for a receipt before sending again."""
        if self.mean_s is None:
            return 3.0
        return min(MAX_WAIT_S, max(MIN_WAIT_S, self.mean_s + 4 * self.deviation_s + COALESCING_S))


WEIGHTS: dict[Lane, int] = {"normal": 4, "bulk": 1}
"""How the lanes below control share what the link carries, while both have letters."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Whose letter is next, by bytes over weight (start-time fair queueing, Goyal 1996)."""

    spent: Mapping[Lane, float] = field(default_factory=dict)

    def next(self, waiting: Collection[Lane]) -> Lane:
        """The lane of those waiting that had the least."""
        return min(waiting, key=lambda lane: (self.spent.get(lane, 0.0), -WEIGHTS[lane]))

    def charged(self, lane: Lane, size: int, waiting: Collection[Lane]) -> Turns:
        """After a letter; a lane that was idle saves nothing up."""
        spent = dict(self.spent)
        spent[lane] = spent.get(lane, 0.0) + size / WEIGHTS[lane]
        present = [spent.get(other, 0.0) for other in waiting]
        least = min([*present, spent[lane]])
        return Turns({other: max(0.0, spent.get(other, 0.0) - least) for other in WEIGHTS})
