"""What earlier tasks have shown of each device: a fold of the task records, kept up to date change by change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from schemas.ids import Address
from services.scheduler.leases import TaskRecord
from services.scheduler.scoring import Track, relative_speed

PROFILE = "profile@1"
"""The runner whose results tell a device's speed."""


class Tracks:
    """Successes, failures and speed by device."""

    def __init__(self) -> None:
        self._succeeded: Counter[Address] = Counter()
        self._failed: Counter[Address] = Counter()
        self._speeds: dict[Address, tuple[str, float]] = {}

    def get(self, address: Address) -> Track:
        """What is known of a device."""
        speed = self._speeds.get(address)
        return Track(self._succeeded[address], self._failed[address], speed[1] if speed else None)

    def change(self, old: TaskRecord | None, new: TaskRecord | None) -> None:
        """Take over a change of one record; None for one that is not there."""
        for record, sign in ((old, -1), (new, 1)):
            for address, succeeded in outcomes(record) if record else ():
                (self._succeeded if succeeded else self._failed)[address] += sign
        if new is not None and new.request.runner == PROFILE:
            self._learn_speed(new)

    def _learn_speed(self, record: TaskRecord) -> None:
        for result in record.results:
            speed = relative_speed(result.output) if result.outcome == "ok" else None
            address = Address(record.request.fleet, result.device)
            # Task ids are ULIDs: a later task has the greater one, whatever the order of loading.
            if speed is not None and record.task >= self._speeds.get(address, ("", 0.0))[0]:
                self._speeds[address] = (record.task, speed)


def outcomes(record: TaskRecord) -> Iterator[tuple[Address, bool]]:
    """Attempts that tell of their device: success, or failure and silence. A refusal is the device's right."""
    said = {result.term: result.outcome for result in record.results}
    for attempt in record.attempts:
        if attempt is record.lease:
            continue
        outcome = said.get(attempt.term, "silent")
        if outcome != "refused":
            yield Address(record.request.fleet, attempt.device), outcome == "ok"
