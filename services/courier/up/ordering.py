"""Which letters may enter IN: the next one of each lane, once.

A letter first lifts its lane's mark to what its device no longer holds (`floor - 1`); the numbers jumped over are lost
and are reported as such. Then only the successor of the mark is admitted. Anything older is a duplicate and earns its
receipt again; anything newer is early and is left for the device to send again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What becomes of one letter."""

    ADMIT = "admit"
    DUPLICATE = "duplicate"
    EARLY = "early"


@dataclass(frozen=True, slots=True)
class LaneKey:
    """One ordered sequence of one device: its outbox's epoch and a lane in it."""

    fleet: str
    device: str
    epoch: str
    lane: str

    def message_id(self, sequence: int) -> str:
        """Name of a letter in IN: `fleet:device:epoch:lane:sequence`."""
        return f"{self.fleet}:{self.device}:{self.epoch}:{self.lane}:{sequence}"


@dataclass(frozen=True, slots=True)
class Slip:
    """What ordering needs to know of a letter.

    Raises:
        ValueError: if not 1 <= floor <= sequence; a device holds what it sends.
    """

    key: LaneKey
    sequence: int
    floor: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.floor <= self.sequence:
            raise ValueError(
                f"letter of {self.key.device} needs 1 <= floor <= sequence, "
                f"got floor {self.floor} and sequence {self.sequence}"
            )


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequences `first` to `last` of a lane, which will never come."""

    key: LaneKey
    first: int
    last: int

    @property
    def letters(self) -> int:
        """How many are lost."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Ruling:
    """The verdicts of a batch, in its order, the marks once the admitted letters are stored, and the losses."""

    verdicts: tuple[Verdict, ...]
    marks: Mapping[LaneKey, int]
    gaps: tuple[Gap, ...] = ()


def rule(batch: Sequence[Slip], marks: Mapping[LaneKey, int]) -> Ruling:
    """Decide a batch against the marks, where a missing mark means that nothing was stored yet.

    Args:
        batch: letters in the order in which they arrived.
        marks: highest stored sequence per lane; not changed.

    Returns:
        One verdict per letter, the new marks of the lanes that moved, and the gaps that floors opened.
    """
    moved: dict[LaneKey, int] = {}
    verdicts: list[Verdict] = []
    gaps: list[Gap] = []
    for slip in batch:
        mark = moved.get(slip.key, marks.get(slip.key, 0))
        if mark < slip.floor - 1:
            gaps.append(Gap(slip.key, mark + 1, slip.floor - 1))
            mark = moved[slip.key] = slip.floor - 1
        if slip.sequence <= mark:
            verdicts.append(Verdict.DUPLICATE)
        elif slip.sequence > mark + 1:
            verdicts.append(Verdict.EARLY)
        else:
            moved[slip.key] = slip.sequence
            verdicts.append(Verdict.ADMIT)
    return Ruling(tuple(verdicts), moved, tuple(gaps))


def parse_message_id(text: str) -> tuple[LaneKey, int] | None:
    """Lane and sequence of a message in IN, or None where it is not a letter (a fence)."""
    parts = text.split(":")
    if len(parts) != 5 or not parts[4].isdecimal():
        return None
    return LaneKey(parts[0], parts[1], parts[2], parts[3]), int(parts[4])
