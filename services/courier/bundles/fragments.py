"""Fragments of bundles until they are whole: what is held, and what is given up. Pure.

A fragment that came as a carrier's letter is held by a ticket, its place in IN, which stays unacknowledged: what is in
memory here is there, too. Nothing is given up in silence: whoever calls learns what was dropped, and why.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from schemas.bundles import BundleHead, Parcel, whole
from schemas.errors import MessageError
from schemas.ids import Address

MAX_CARRIERS = 3
"""Of one bundle that are remembered, the newest: answers go to them."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A fragment whose head is its origin's, and that is not too old."""

    parcel: Parcel
    origin: Address
    left_s: float
    """Rest of its lifetime."""
    carrier: Address | None = None
    """None: handed over by an operator."""
    ticket: int | None = None


@dataclass(slots=True)
class Gathering:
    """One bundle, whole or not."""

    origin: Address
    label: BundleHead
    deadline: float
    parcels: dict[int, Parcel] = field(default_factory=dict)
    tickets: dict[int, int] = field(default_factory=dict)
    """By index of the fragment."""
    carriers: list[Address] = field(default_factory=list)

    @property
    def bundle(self) -> str:
        """Id of the bundle."""
        return self.label.id

    def brought_by(self, carrier: Address | None) -> None:
        """Remember who had it last."""
        if carrier is not None:
            self.carriers = [*(known for known in self.carriers if known != carrier), carrier][-MAX_CARRIERS:]


@dataclass(frozen=True, slots=True)
class Taken:
    """What one arrival brought about.

    Attributes:
        whole: the bundle, if this was its last missing fragment; it is no longer held here.
        spare: tickets of copies that nobody needs.
        dropped: bundles that had to go to keep the bounds.
    """

    whole: Gathering | None = None
    spare: tuple[int, ...] = ()
    dropped: tuple[Gathering, ...] = ()


class Fragments:
    """Everything that is incomplete, within bounds.

    Args:
        limit: fragments held in all.
        per_origin: incomplete bundles of one origin; its newest say all that its older ones do.
        wait_s: longest time that a bundle waits for the rest of it.
    """

    def __init__(self, limit: int, per_origin: int, wait_s: float) -> None:
        self._limit = limit
        self._per_origin = per_origin
        self._wait_s = wait_s
        self._held: OrderedDict[tuple[Address, str], Gathering] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, arrival: Arrival, now: float) -> Taken:
        """Hold a fragment.

        Raises:
            MessageError: `inconsistent` if its head contradicts those of the same bundle that are held.
        """
        head = arrival.parcel.head
        key = (arrival.origin, head.id)
        gathering = self._held.get(key)
        if gathering is None:
            deadline = now + min(self._wait_s, arrival.left_s)
            gathering = self._held[key] = Gathering(arrival.origin, head, deadline)
        elif _label(gathering.label) != _label(head):
            raise MessageError(
                f"fragment {head.fragment.index} of bundle {head.id} contradicts the others; its origin made two "
                "bundles of one id",
                reason="inconsistent",
            )
        spare = self._put(gathering, arrival)
        gathering.brought_by(arrival.carrier)
        if whole(list(gathering.parcels.values())):
            self._remove(key)
            return Taken(gathering, spare)
        return Taken(None, spare, tuple(self._bound(key)))

    def overdue(self, now: float) -> list[Gathering]:
        """Bundles whose rest did not come in time; they are no longer held."""
        late = [key for key, gathering in self._held.items() if gathering.deadline <= now]
        return [self._remove(key) for key in late]

    def clear(self) -> None:
        """Forget everything; what has a ticket comes again."""
        self._held.clear()
        self._count = 0

    def _put(self, gathering: Gathering, arrival: Arrival) -> tuple[int, ...]:
        index, ticket = arrival.parcel.head.fragment.index, arrival.ticket
        if index not in gathering.parcels:
            gathering.parcels[index] = arrival.parcel
            self._count += 1
        known = gathering.tickets.get(index)
        if ticket is None or ticket == known:
            return ()
        if known is not None:
            return (ticket,)
        # An operator's copy is in memory alone; this one is on disk.
        gathering.tickets[index] = ticket
        return ()

    def _bound(self, newest: tuple[Address, str]) -> Iterator[Gathering]:
        mine = [key for key in self._held if key[0] == newest[0]]
        for key in mine[: max(0, len(mine) - self._per_origin)]:
            yield self._remove(key)
        while self._count > self._limit and len(self._held) > 1:
            yield self._remove(self._fattest(newest))

    def _fattest(self, newest: tuple[Address, str]) -> tuple[Address, str]:
        """The oldest bundle of whoever takes most of the room."""
        held: Counter[Address] = Counter()
        for (origin, _), gathering in self._held.items():
            held[origin] += len(gathering.parcels)
        for origin, _ in held.most_common():
            oldest = next((key for key in self._held if key[0] == origin and key != newest), None)
            if oldest is not None:
                return oldest
        raise AssertionError("there is another bundle than the newest")

    def _remove(self, key: tuple[Address, str]) -> Gathering:
        gathering = self._held.pop(key)
        self._count -= len(gathering.parcels)
        return gathering


def _label(head: BundleHead) -> tuple[object, ...]:
    return head.platform, head.destination, head.created, head.lifetime_s, head.fragment.count
