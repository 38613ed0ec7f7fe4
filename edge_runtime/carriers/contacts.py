"""Whom a device could meet on its LAN, and when it calls on whom. Pure: sightings, meetings and `now` in, calls out.

Both devices of a pair call, each at its own random time, and a meeting counts for both: so there is about one per
interval, and soon after there is something new to hand over.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field

from schemas.ids import Address

MAX_CONTACTS = 64
"""Known at once; a LAN with more devices has carriers enough."""
SOON_S = 1.0
"""Calls after news are spread over it."""
MIN_GAP_S = 1.0
"""Between two calls on the same peer."""
MAX_BACKOFF_S = 300.0
VISIT_S = 120.0
"""How long somebody who came by counts as in sight, without a sighting."""
LOST_AFTER = 3
"""Calls in vain after which a peer is not in sight any more, though its announcement still stands."""

Place = tuple[str, int]
"""Host and port."""


@dataclass
class Contact:
    """One peer that could be called.

    Attributes:
        places: where it listens.
        address: as announced, or as proven once it was met; None for a place from the settings before that.
        proven: whether it was met.
        due: monotonic time of the next call.
    """

    places: tuple[Place, ...]
    address: Address | None
    fixed: bool = False
    proven: bool = False
    failures: int = 0
    due: float = 0.0
    called: float = field(default=float("-inf"))


class Contacts:
    """The contacts of one device, by name: that of the service instance, or of the place in the settings.

    Args:
        interval_s: between meetings without news.
        chance: draws the times.
    """

    def __init__(self, interval_s: float, chance: random.Random) -> None:
        self._interval_s = interval_s
        self._chance = chance
        self._contacts: dict[str, Contact] = {}
        self._visits: dict[Address, float] = {}
        self.turned_away = 0
        """Sightings for which there was no room."""

    def __len__(self) -> int:
        return len(self._contacts)

    def get(self, name: str) -> Contact | None:
        """A contact, if it is still there."""
        return self._contacts.get(name)

    def sight(self, name: str, places: tuple[Place, ...], address: Address | None, now: float, *, fixed: bool) -> None:
        """Somebody announces itself, anew or again; `fixed` ones are of the settings and stay."""
        known = self._contacts.get(name)
        if known is not None:
            if known.places == places and known.address == address:
                return
            # Elsewhere now, or somebody else: what went wrong before says nothing.
            known.places, known.failures = places, 0
            if not known.fixed:
                known.address = address
            known.due = min(known.due, now + self._soon())
            return
        if len(self._contacts) >= MAX_CONTACTS and not self._make_room():
            self.turned_away += 1
            return
        self._contacts[name] = Contact(places, address, fixed, due=now + self._soon())

    def lose(self, name: str) -> None:
        """It said goodbye, or its announcement ran out."""
        contact = self._contacts.get(name)
        if contact is not None and not contact.fixed:
            del self._contacts[name]

    def forget_announced(self) -> None:
        """The network has changed: only places of the settings stay."""
        self._contacts = {name: contact for name, contact in self._contacts.items() if contact.fixed}
        self._visits.clear()

    def due(self, now: float) -> list[str]:
        """Whom to call now, the longest overdue first."""
        late = [(contact.due, name) for name, contact in self._contacts.items() if contact.due <= now]
        return [name for _, name in sorted(late)]

    def next_due(self) -> float | None:
        """When the next call is."""
        return min((contact.due for contact in self._contacts.values()), default=None)

    def calling(self, name: str, now: float) -> None:
        """A call begins; the next one is set in case nothing more is heard of this one."""
        contact = self._contacts[name]
        contact.called, contact.due = now, now + self._rest()

    def met(self, address: Address, now: float, name: str | None = None) -> None:
        """A meeting ended well, whoever called; `name` if we did."""
        if name is not None and name in self._contacts:
            self._contacts[name].address = address
        self._visits.pop(address, None)
        self._visits[address] = now
        if len(self._visits) > MAX_CONTACTS:
            del self._visits[next(iter(self._visits))]
        for contact in self._contacts.values():
            if contact.address == address:
                contact.proven, contact.failures = True, 0
                contact.due, contact.called = now + self._rest(), now

    def failed(self, name: str, now: float) -> None:
        """A call was in vain: full jitter up to twice the last ceiling."""
        contact = self._contacts.get(name)
        if contact is not None:
            contact.failures += 1
            ceiling = min(MAX_BACKOFF_S, self._interval_s * 2 ** min(contact.failures, 10))
            contact.due = now + max(MIN_GAP_S, self._chance.uniform(0, ceiling))
            if contact.failures >= LOST_AFTER and contact.address is not None:
                self._visits.pop(contact.address, None)

    def news(self, now: float, but: Address | None = None) -> None:
        """There is something to hand over: call on everybody soon, but on whoever brought it."""
        for contact in self._contacts.values():
            if contact.failures < LOST_AFTER and (but is None or contact.address != but):
                soonest = max(now, contact.called + MIN_GAP_S)
                contact.due = min(contact.due, soonest + self._soon())

    def in_sight(self, now: float) -> Collection[Address]:
        """Peers that could be met now."""
        seen = {
            contact.address
            for contact in self._contacts.values()
            if contact.address is not None
            and contact.failures < LOST_AFTER
            # A place from the settings is a hope until somebody was met there.
            and (contact.proven or not contact.fixed)
        }
        return seen | {address for address, at in self._visits.items() if now - at < VISIT_S}

    def _make_room(self) -> bool:
        """Drop whoever was never met and has failed most."""
        strangers = [
            (contact.failures, name)
            for name, contact in self._contacts.items()
            if not contact.fixed and not contact.proven and contact.failures
        ]
        if not strangers:
            return False
        del self._contacts[max(strangers)[1]]
        return True

    def _soon(self) -> float:
        return self._chance.uniform(0, SOON_S)

    def _rest(self) -> float:
        return self._interval_s * self._chance.uniform(0.5, 1.5)
