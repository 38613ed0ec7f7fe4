"""Whether a receipt speaks of this outbox at all."""

from __future__ import annotations

from collections.abc import Mapping

from edge_runtime.letters.losses import NOBODY
from edge_runtime.letters.outbox import Outbox
from schemas.events import Lane


def foreign_marks(
    outbox: Outbox,
    lanes: Mapping[Lane, tuple[int, int]],
    marks: Mapping[Lane, int],
    heads: Mapping[Lane, str],
    *,
    later: bool = False,
) -> dict[Lane, int]:
    """Marks that count letters which this outbox did not send.

    The disk was restored from an older image, or copied: the number at the mark was never given here, or to another
    letter. What is held up to such a mark was not received.

    Args:
        outbox: of this device.
        lanes: (issued, mark) of each lane.
        marks: of a receipt of the present epoch.
        heads: the letters at these marks, where the courier knows them.
        later: not the first receipt of its session: it is about what was sent in it, and other names are no proof.
    """
    found: dict[Lane, int] = {}
    for lane, mark in marks.items():
        issued, known = lanes.get(lane, (0, 0))
        # One that is not known here any more was receipted before, or is beyond what the ledger can name.
        own = outbox.id_at(lane, mark) if known < mark <= issued else None
        if own == NOBODY:
            # The floors of what stands behind such numbers lift the mark to the last of them, where no letter is then.
            other = lane in heads or outbox.id_at(lane, mark + 1) == NOBODY
        else:
            other = own is not None and not later and own != heads.get(lane, own)
        if mark > issued or other:
            found[lane] = mark
    return found
