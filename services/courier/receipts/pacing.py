"""When to send receipts: at most one per device and interval."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from schemas.ids import Address

MAX_EPOCHS_WAITING = 4


@dataclass(frozen=True, slots=True)
class Due:
    """A receipt to sign now."""

    address: Address
    epoch: str


@dataclass(slots=True)
class ReceiptPacer:
    """The first receipt at once, then one per device and `interval_s`, cumulative: what came between rides along."""

    interval_s: float
    _resting: set[Address] = field(default_factory=set)
    _waiting: dict[Address, list[str]] = field(default_factory=dict)
    _wakes: list[tuple[float, Address]] = field(default_factory=list)

    def ask(self, address: Address, epoch: str, now: float) -> Due | None:
        """A receipt is owed; returned if it may go now, else `due` hands it out later."""
        if address not in self._resting:
            self._sent(address, now)
            return Due(address, epoch)
        waiting = self._waiting.setdefault(address, [])
        if epoch not in waiting:
            waiting.append(epoch)
            # An old epoch's receipt may be asked for again; the newest matters.
            del waiting[:-MAX_EPOCHS_WAITING]
        return None

    def due(self, now: float) -> list[Due]:
        """Receipts whose device has rested long enough."""
        ready: list[Due] = []
        while self._wakes and self._wakes[0][0] <= now:
            _, address = heapq.heappop(self._wakes)
            epochs = self._waiting.pop(address, None)
            if epochs is None:
                self._resting.discard(address)
                continue
            ready += [Due(address, epoch) for epoch in epochs]
            self._sent(address, now)
        return ready

    def next_wake(self) -> float | None:
        """When `due` has something to do."""
        return self._wakes[0][0] if self._wakes else None

    def _sent(self, address: Address, now: float) -> None:
        self._resting.add(address)
        heapq.heappush(self._wakes, (now + self.interval_s, address))
