"""An outbox through all that it does: letters of every lane, evictions, sendings, receipts, trimming, a new epoch.

No longer than it takes for each of these, since it is killed at each of its writes.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from edge_runtime.errors import OutboxError
from edge_runtime.letters.outbox import Outbox
from edge_runtime.settings import OutboxLimits
from schemas.events import LANES, Untyped
from tests.power.workloads import promise

LIMITS = OutboxLimits(max_bytes=1 << 20).model_copy(update={"max_letters": 40})
"""Fewer than an owner may set, so that it is full soon."""
CHECKPOINT_PAGES = 150
"""The log of so short a life would never be full, and its beginning never written a second time."""
DAY_S = 86_400.0


class Device:
    """Says what it does with its outbox."""

    def __init__(self, root: Path, seed: int) -> None:
        self.now = 1_000_000.0
        self.rng = random.Random(seed)
        self.outbox = Outbox(root / "outbox.db", LIMITS, lambda: self.now)

    def add(self) -> None:
        lane = self.rng.choices(LANES, (1, 6, 3))[0]
        try:
            letter = self.outbox.add("sample", Untyped(text="x" * self.rng.randrange(40, 900)), lane)
        except OutboxError:
            return  # full of more urgent ones: nothing was promised
        promise(added=letter)

    def send(self) -> None:
        for lane, (_, mark) in self.outbox.lanes().items():
            run = self.outbox.run_above(lane, mark)
            for letter in self.outbox.load(lane, run) if run else []:
                promise(sent=[letter.epoch, lane, letter.sequence, letter.id])

    def receipt(self) -> None:
        lanes = self.outbox.lanes()
        marks = {lane: self.rng.randint(mark, issued) for lane, (issued, mark) in lanes.items()}
        promise(receipted=marks, epoch=self.outbox.epoch)
        self.outbox.receipt(marks)


def main() -> None:
    device = Device(Path(sys.argv[1]), int(sys.argv[2]))
    device.outbox.database.read(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    for number in range(75):
        device.add()
        if number % 12 == 11:
            device.send()
            if number % 24 == 23:
                device.receipt()
        if number == 50:
            device.now += 2 * DAY_S
            device.outbox.trim()
        if number == 65:
            device.send()
            device.outbox.renew_epoch()
            promise(epoch=device.outbox.epoch)
    device.outbox.close()


if __name__ == "__main__":
    main()
