"""What becomes of the tasks that wait, given one snapshot of the devices: records in, changed records out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from services.scheduler.leases import TaskRecord, grant, hold
from services.scheduler.placement import Placer


def plan(
    queued: Iterable[TaskRecord], placer: Placer, now: datetime, new_letter: Callable[[], str]
) -> list[TaskRecord]:
    """Lease what can be leased, say why the rest cannot, fail what has waited too long.

    Args:
        queued: tasks in the order in which they are served.
        placer: the snapshot; it counts what this plan places.
        now: time of the decision.
        new_letter: gives the id of each lease's letter.

    Returns:
        The records that change, in order.
    """
    changed: list[TaskRecord] = []
    refused: set[str] = set()
    for record in queued:
        key = record.demand.key
        if key in refused and record.reasons and now < record.place_by:
            continue  # its equal was refused just now, and it has been told why before
        placement = placer.place(record.demand, record.tried)
        if placement.device is not None:
            changed.append(grant(record, placement.device, placement.reasons, new_letter(), now))
            continue
        refused.add(key)
        held = hold(record, placement.reasons, now)
        if held != record:
            changed.append(held)
    return changed
