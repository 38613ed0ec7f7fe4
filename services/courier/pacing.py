"""When to tell a device something: at most once per device and interval."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from schemas.ids import Address

MAX_WAITING = 4


@dataclass(frozen=True, slots=True)
class Due:
    """To be sent now: a receipt for an epoch, say."""

    address: Address
    what: str


@dataclass(slots=True)
class Pacer:
    """The first at once, then one per device and `interval_s`, cumulative: what came between rides along."""

    interval_s: float
    _resting: set[Address] = field(default_factory=set)
    _waiting: dict[Address, list[str]] = field(default_factory=dict)
    _wakes: list[tuple[float, Address]] = field(default_factory=list)

    def ask(self, address: Address, what: str, now: float) -> Due | None:
        """Something is owed; returned if it may go now, else `due` hands it out later."""
        if address not in self._resting:
            self._sent(address, now)
            return Due(address, what)
        waiting = self._waiting.setdefault(address, [])
        if what not in waiting:
            waiting.append(what)
            # An old epoch's receipt may be asked for again; the newest matters.
            del waiting[:-MAX_WAITING]
        return None

    def due(self, now: float) -> list[Due]:
        """What is owed to devices that have rested long enough."""
        ready: list[Due] = []
        while self._wakes and self._wakes[0][0] <= now:
            _, address = heapq.heappop(self._wakes)
            owed = self._waiting.pop(address, None)
            if owed is None:
                self._resting.discard(address)
                continue
            ready += [Due(address, what) for what in owed]
            self._sent(address, now)
        return ready

    def next_wake(self) -> float | None:
        """When `due` has something to do."""
        return self._wakes[0][0] if self._wakes else None

    def _sent(self, address: Address, now: float) -> None:
        self._resting.add(address)
        heapq.heappush(self._wakes, (now + self.interval_s, address))
