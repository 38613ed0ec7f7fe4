"""Whole bundles that came before letters which their own letters must follow. Pure.

Their carriers have let go of them, and their origin believes them on their way for hours; so they stay here until what
was missing has come. They are held by their tickets, as fragments are.
"""

from __future__ import annotations

from collections import OrderedDict

from schemas.ids import Address
from services.courier.bundles.fragments import Gathering


class Early:
    """The early bundles of all devices, within bounds; whatever has to go, its origin still holds the letters.

    Args:
        limit: fragments held in all.
        per_origin: bundles of one device.
    """

    def __init__(self, limit: int, per_origin: int) -> None:
        self._limit = limit
        self._per_origin = per_origin
        self._held: OrderedDict[tuple[Address, str], Gathering] = OrderedDict()

    def __len__(self) -> int:
        """Fragments held."""
        return sum(len(gathering.parcels) for gathering in self._held.values())

    def put(self, gathering: Gathering) -> tuple[int, ...]:
        """Hold a bundle. Returns the tickets that need not come again for it."""
        key = (gathering.origin, gathering.bundle)
        known = self._held.pop(key, None)
        self._held[key] = gathering
        spare = [] if known is None else [n for n in known.tickets.values() if n not in gathering.tickets.values()]
        mine = [held for held in self._held if held[0] == gathering.origin]
        gone = [self._held.pop(held) for held in mine[: max(0, len(mine) - self._per_origin)]]
        while len(self) > self._limit:
            gone.append(self._held.popitem(last=False)[1])
        return (*spare, *_tickets(gone))

    def of(self, origin: Address) -> list[Gathering]:
        """Bundles of one device in the order of their making; they are no longer held."""
        keys = sorted(key for key in self._held if key[0] == origin)
        return [self._held.pop(key) for key in keys]

    def overdue(self, now: float) -> tuple[int, ...]:
        """Let go of bundles whose time is over. Returns the tickets that need not come again."""
        late = [key for key, gathering in self._held.items() if gathering.deadline <= now]
        return _tickets([self._held.pop(key) for key in late])

    def clear(self) -> None:
        """Forget everything; what has a ticket comes again."""
        self._held.clear()


def _tickets(gatherings: list[Gathering]) -> tuple[int, ...]:
    return tuple(ticket for gathering in gatherings for ticket in gathering.tickets.values())
