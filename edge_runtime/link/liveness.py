"""Whether the other end is still there. Pure: `link` looks once a second and does what this says.

Any byte of any packet counts as life, so that a piece which takes a minute on a slow link is no reason to hang up; and
so does an acknowledgement of the other end's kernel, though not for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PING_S = 20.0
"""Silence in either direction after which a ping goes out."""
MIN_SILENCE_S = 30.0
MAX_SILENCE_S = 90.0
"""Neither a byte nor an acknowledgement for so long after a ping: nothing gets through any more."""
SILENCE_ROUND_TRIPS = 10.0
"""Added to the least silence: lost packets on a far link are repeated every few round trips."""
MAX_UNANSWERED_S = 180.0
"""The other end's kernel acknowledges, but its program says nothing."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """Monotonic times, in seconds.

    Attributes:
        heard: last byte that came.
        spoke: last byte that went.
        acknowledged: when the other end's kernel last acknowledged something; None where the kernel does not say.
        pinged: when the ping went out that is not answered yet.
        round_trip_s: the shortest of late.
    """

    heard: float
    spoke: float
    acknowledged: float | None
    pinged: float | None
    round_trip_s: float


def judge(pulse: Pulse, now: float) -> Literal["fine", "ping", "gone"]:
    """What to do now."""
    if pulse.pinged is None:
        return "ping" if now - min(pulse.heard, pulse.spoke) >= PING_S else "fine"
    heard = max(pulse.pinged, pulse.heard)
    alive = heard if pulse.acknowledged is None else max(heard, pulse.acknowledged)
    allowed_s = min(MAX_SILENCE_S, MIN_SILENCE_S + SILENCE_ROUND_TRIPS * pulse.round_trip_s)
    return "gone" if now - alive > allowed_s or now - heard > MAX_UNANSWERED_S else "fine"
