"""What the outbox keeps, and what it gives up when it is full. Pure: `outbox.py` carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.events import Lane

KEEP_RECEIPTED_S = 24 * 3_600.0
KEEP_AT_LEAST_S = 300.0
RECEIPTED_SHARE = 0.2
RESERVED_SHARE = 0.1
"""Of the bound; only the control lane may use it, so that a device full of samples can still say so."""

EVICTION_ORDER: tuple[Lane, ...] = ("bulk", "normal", "control")


@dataclass(frozen=True, slots=True)
class Amount:
    """Letters and their bytes."""

    letters: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.letters + other.letters, self.bytes + other.bytes)

    def fits(self, bound: Amount) -> bool:
        """Whether this is within the bound."""
        return self.letters <= bound.letters and self.bytes <= bound.bytes

    def share(self, ratio: float) -> Amount:
        """A part of this."""
        return Amount(int(self.letters * ratio), int(self.bytes * ratio))


def lane_to_evict(lane: Lane, size: int, waiting: Mapping[Lane, Amount], bound: Amount) -> Lane | None:
    """Lane whose oldest letter must go so that one of `size` bytes fits into `lane`; None if it fits as it is.

    A letter never pushes out a more urgent one.

    Raises:
        ValueError: if nothing may go, so that the new letter is refused.
    """
    total = sum(waiting.values(), Amount(1, size))
    room = bound if lane == "control" else bound.share(1 - RESERVED_SHARE)
    if total.fits(room):
        return None
    for candidate in EVICTION_ORDER[: EVICTION_ORDER.index(lane) + 1]:
        if waiting.get(candidate, Amount()).letters:
            return candidate
    raise ValueError(f"no letter of lane {lane} or of a less urgent one is left to give up")


@dataclass(frozen=True, slots=True)
class Kept:
    """A receipted letter that is still there, in case that the courier loses it."""

    receipted_at: float
    bytes: int


def may_go(oldest: Kept, kept: Amount, bound: Amount, now: float) -> bool:
    """Whether the oldest receipted letter may be deleted.

    Kept for 24 h; less if receipted letters exceed 20 % of the bound, but then still 5 min, unless they fill the whole
    bound once more.
    """
    # A clock that was set back must not keep letters for ever.
    age = abs(now - oldest.receipted_at)
    if age >= KEEP_RECEIPTED_S or not kept.fits(bound):
        return True
    return age >= KEEP_AT_LEAST_S and not kept.fits(bound.share(RECEIPTED_SHARE))


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequences that this device gave up and that will never come."""

    first: int
    last: int


def floor_of(sequence: int, lowest_held: int, gaps: list[Gap]) -> int:
    """Floor that a letter is signed with: the lowest sequence held without a gap up to `sequence`."""
    return max([lowest_held, *(gap.last + 1 for gap in gaps if gap.last < sequence)])
