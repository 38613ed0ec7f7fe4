"""Which letters of this device go into a new bundle, and which open bundles are over. Pure.

A bundle is open until the courier has acknowledged it. Letters in an open bundle are not packed again, however many
peers are met: the same bundle is offered to all of them. New letters go into a further bundle. When an open bundle has
had no answer for long, all that waits is packed anew; when too many are open, the small ones become one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.events import Lane

MAX_OPEN = 4
REMAKE_S = 6 * 3_600.0
"""Without an answer for so long, all copies may be lost."""
PACK_AGAIN_S = 30.0
"""Least time between two bundles, so that a trickle of letters does not make a bundle each."""
ASK_AGAIN_S = 900.0
"""How often a bundle without letters may ask for what waits in the mailbox."""


@dataclass(frozen=True, slots=True)
class Span:
    """Sequences of one lane, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Packed:
    """An open bundle of this device.

    Attributes:
        told: names what its greeting said, beside letters.
        age_s: as of now.
        full: no further letter fitted into it.
    """

    id: str
    epoch: str
    spans: Mapping[Lane, Span]
    told: str
    age_s: float
    full: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the outbox holds.

    Attributes:
        lanes: highest sequence of each, and the highest that is known to be receipted.
        unbroken: highest before the first gap above that; a lane that is not named has none.
    """

    epoch: str
    lanes: Mapping[Lane, tuple[int, int]]
    unbroken: Mapping[Lane, int] = field(default_factory=dict)

    def upto(self, lane: Lane, covered: int) -> int:
        """How far a bundle may reach that begins above `covered`.

        Behind a gap floors tell the courier to skip what has not come. So what is there goes only with all that is
        before it, since the bundle that holds the rest may come later, or never.
        """
        last, mark = self.lanes.get(lane, (0, 0))
        return last if covered <= mark else min(last, self.unbroken.get(lane, last))


@dataclass(frozen=True, slots=True)
class Asked:
    """The last bundle that was made, whatever became of it."""

    told: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    Attributes:
        close: open bundles that are over.
        above: pack what lies above these sequences; None for no new bundle.
    """

    close: tuple[str, ...]
    above: Mapping[Lane, int] | None


def plan(
    opened: Sequence[Packed], waiting: Waiting, told: str, *, asked: Asked | None = None, urgent: bool = False
) -> Plan:
    """Decide.

    Args:
        opened: open bundles, oldest first.
        waiting: the outbox.
        told: what a greeting would say now.
        asked: when the platform was last told, open or not; None for never.
        urgent: somebody waits for the bundle, so that the least times do not count.
    """
    marks = {lane: mark for lane, (_, mark) in waiting.lanes.items()}
    useful = [packed for packed in opened if packed.epoch == waiting.epoch and needed(packed, waiting)]
    over = tuple(packed.id for packed in opened if packed not in useful)
    reach, whole = _reach(useful, marks)
    everything = (*over, *(packed.id for packed in useful))
    if not whole or any(packed.age_s >= REMAKE_S for packed in useful):
        return Plan(everything, marks)
    anew = Plan(over, reach) if len(useful) < MAX_OPEN else _merged(over, useful, marks)
    since = asked.age_s if asked is not None else float("inf")
    if any(waiting.upto(lane, covered) > covered for lane, covered in reach.items()):
        return anew if urgent or not useful or since >= PACK_AGAIN_S else Plan(over, None)
    behind_gap = any(last > reach[lane] for lane, (last, _) in waiting.lanes.items())
    if behind_gap and (urgent or since >= ASK_AGAIN_S) and not any(packed.full for packed in useful):
        return Plan(everything, marks)
    news = asked is None or asked.told != told
    if useful:
        return anew if news and (urgent or since >= PACK_AGAIN_S) else Plan(over, None)
    return anew if urgent or since >= (PACK_AGAIN_S if news else ASK_AGAIN_S) else Plan(over, None)


def _merged(over: tuple[str, ...], useful: Sequence[Packed], marks: Mapping[Lane, int]) -> Plan:
    """Make one of the bundles behind the last full one; if there are not two, new letters wait for an answer."""
    kept = max((place for place, packed in enumerate(useful, 1) if packed.full), default=0)
    if len(useful) - kept < 2:
        return Plan(over, None)
    reach, _ = _reach(useful[:kept], marks)
    return Plan((*over, *(packed.id for packed in useful[kept:])), reach)


def needed(packed: Packed, waiting: Waiting) -> bool:
    """One without letters is needed for its question; others while they hold a letter that is not receipted."""
    return not packed.spans or any(
        span.last > waiting.lanes.get(lane, (0, 0))[1] for lane, span in packed.spans.items()
    )


def _reach(useful: Sequence[Packed], marks: Mapping[Lane, int]) -> tuple[dict[Lane, int], bool]:
    """How far the open bundles cover each lane, and whether they do so without a hole."""
    reach = dict(marks)
    for packed in useful:
        for lane, span in packed.spans.items():
            if span.first > reach.get(lane, 0) + 1:
                return reach, False
            reach[lane] = max(reach.get(lane, 0), span.last)
    return reach, True
