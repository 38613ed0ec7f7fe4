"""What the outbox keeps, and what it gives up when it is full. Pure: `outbox.py` carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_runtime.settings import LaneLimits, OutboxLimits
from schemas.events import LANES, Lane

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

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.letters - other.letters, self.bytes - other.bytes)

    def fits(self, bound: Amount) -> bool:
        """Whether this is within the bound."""
        return self.letters <= bound.letters and self.bytes <= bound.bytes

    def share(self, ratio: float) -> Amount:
        """A part of this."""
        return Amount(int(self.letters * ratio), int(self.bytes * ratio))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait: in all, and in each lane."""

    total: Amount
    lanes: Mapping[Lane, Amount]
    max_age_s: Mapping[Lane, float]
    """Lanes that are not named keep their letters for as long as it takes."""

    @classmethod
    def of(cls, limits: OutboxLimits) -> Bounds:
        """As the owner has set them."""
        total = Amount(limits.max_letters, limits.max_bytes)
        lanes: dict[Lane, LaneLimits] = {"control": limits.control, "normal": limits.normal, "bulk": limits.bulk}
        return cls(
            total,
            {
                lane: Amount(
                    total.letters if own.max_letters is None else own.max_letters,
                    total.bytes if own.max_bytes is None else own.max_bytes,
                )
                for lane, own in lanes.items()
            },
            {lane: own.max_age_s for lane, own in lanes.items() if own.max_age_s is not None},
        )

    @classmethod
    def of_memory(cls, limits: OutboxLimits) -> Bounds:
        """While the disk does not do its part."""
        total = Amount(limits.max_letters, limits.memory_bytes)
        return cls(total, dict.fromkeys(LANES, total), cls.of(limits).max_age_s)


def lane_to_evict(lane: Lane, size: int, waiting: Mapping[Lane, Amount], bounds: Bounds) -> Lane | None:
    """Lane whose oldest letter must go so that one of `size` bytes fits into `lane`; None if it fits as it is.

    A letter never pushes out a more urgent one.

    Raises:
        ValueError: if nothing may go, so that the new letter is refused.
    """
    new, own = Amount(1, size), waiting.get(lane, Amount())
    if own.letters and not (own + new).fits(bounds.lanes[lane]):
        return lane
    room = bounds.total if lane == "control" else bounds.total.share(1 - RESERVED_SHARE)
    if sum(waiting.values(), new).fits(room):
        return None
    for candidate in EVICTION_ORDER[: EVICTION_ORDER.index(lane) + 1]:
        if waiting.get(candidate, Amount()).letters:
            return candidate
    raise ValueError(f"no letter of lane {lane} or of a less urgent one is left to give up")


def lane_above_bounds(waiting: Mapping[Lane, Amount], bounds: Bounds) -> Lane | None:
    """Lane whose oldest letter must go because there is too much already; None if all is within the bounds."""
    for lane in EVICTION_ORDER:
        if not waiting.get(lane, Amount()).fits(bounds.lanes[lane]):
            return lane
    total = sum(waiting.values(), Amount())
    urgent = waiting.get("control", Amount())
    if total.fits(bounds.total) and (total == urgent or total.fits(bounds.total.share(1 - RESERVED_SHARE))):
        return None
    return next((lane for lane in EVICTION_ORDER if waiting.get(lane, Amount()).letters), None)


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
