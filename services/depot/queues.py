"""Who is sent a piece next: each device has a bounded queue, and the devices take turns. Pure.

What a device asked for and does not have yet is the flow control: nothing is sent unasked, and a
device that asks for more than its bound is refused the rest, which it asks for again later.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from schemas.ids import Address

MAX_PER_DEVICE = 64
"""Two windows of a device; more than it may have outstanding."""
MAX_DEVICES = 10_000


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to send: a piece of the artifact with this recipe, or the recipe itself (`piece` None)."""

    recipe: str
    piece: str | None
    part: tuple[int, int] | None = None
    """Offset and length, if only a part of it is asked for."""


class Queues:
    """Takes wants, gives out items in turns."""

    def __init__(self, per_device: int = MAX_PER_DEVICE, devices: int = MAX_DEVICES) -> None:
        self._per_device = per_device
        self._devices = devices
        self._queues: OrderedDict[Address, OrderedDict[Item, None]] = OrderedDict()

    def __len__(self) -> int:
        """How many items wait."""
        return sum(map(len, self._queues.values()))

    def add(self, address: Address, items: list[Item]) -> int:
        """Queue items; one that waits already is not queued twice.

        Returns:
            How many were refused for want of room.
        """
        queue = self._queues.get(address)
        if queue is None:
            if len(self._queues) >= self._devices:
                return len(items)
            queue = self._queues[address] = OrderedDict()
        refused = 0
        for item in items:
            if item not in queue and len(queue) >= self._per_device:
                refused += 1
            else:
                queue[item] = None
        if not queue:
            del self._queues[address]
        return refused

    def next(self) -> tuple[Address, Item] | None:
        """The next item of the device that has waited longest; None if nothing waits."""
        if not self._queues:
            return None
        address, queue = next(iter(self._queues.items()))
        item, _ = queue.popitem(last=False)
        if queue:
            self._queues.move_to_end(address)
        else:
            del self._queues[address]
        return address, item
