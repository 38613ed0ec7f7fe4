"""Which letters wait for which device, and when each is sent (again): the index of OUT, without its bytes.

A letter stays until its device says `got`. At most `window` letters of a device are on their way at a time; each is
repeated with doubling pauses, and after `attempts` it rests until the device says hello.

Whose turn it is, is first come, first served over all devices. Since a device has at most a window in the queue and
cannot fill it more often than `first_s` allows, nobody waits longer than the others' windows take.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from schemas.ids import Address

SPARE_ENTRIES = 1_024
"""Of letters that are gone; beyond them, and as many as there are letters, they are cleared away."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A letter in OUT; `expires` in seconds since 1970."""

    sequence: int
    address: Address
    kind: str
    slot: str
    letter_id: str
    expires: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of delivery."""

    letters: int
    window: int
    first_s: float
    limit_s: float
    attempts: int


@dataclass(slots=True)
class _Entry:
    letter: Waiting
    left: int
    pause_s: float
    active: bool = False
    next_at: float | None = None


@dataclass(slots=True)
class Mailboxes:
    """All mailboxes. Sequences are OUT's; a newer letter of a slot replaces the older one, as in OUT itself."""

    limits: Limits
    _boxes: dict[Address, dict[int, _Entry]] = field(default_factory=dict)
    _slots: dict[tuple[Address, str, str], int] = field(default_factory=dict)
    _owners: dict[int, Address] = field(default_factory=dict)
    _schedule: list[tuple[float, int]] = field(default_factory=list)
    _expiries: list[tuple[float, int]] = field(default_factory=list)
    _greeted: dict[Address, float] = field(default_factory=dict)
    """When the devices that have letters last began anew."""

    def __len__(self) -> int:
        return len(self._owners)

    def of(self, address: Address) -> list[Waiting]:
        """Letters of one device, oldest first."""
        return [entry.letter for entry in self._boxes.get(address, {}).values()]

    def owners(self) -> list[Address]:
        """Devices that letters wait for."""
        return list(self._boxes)

    def put(self, letter: Waiting, now: float, *, attempts: int | None = None) -> list[Waiting]:
        """A letter is in OUT; letters arrive in the order of OUT.

        Args:
            letter: the new one.
            now: its first sending, if the window has room.
            attempts: fewer than usual for a letter that may have been sent before.

        Returns:
            What must be deleted from OUT, since the device has too many letters.
        """
        replaced = self._slots.get((letter.address, letter.kind, letter.slot))
        if replaced is not None:
            if replaced >= letter.sequence:
                return []
            self.remove(replaced)
        box = self._boxes.setdefault(letter.address, {})
        box[letter.sequence] = _Entry(letter, attempts or self.limits.attempts, self.limits.first_s)
        self._slots[letter.address, letter.kind, letter.slot] = letter.sequence
        self._owners[letter.sequence] = letter.address
        self._note_expiry(letter)
        dropped = []
        while len(box) > self.limits.letters:
            oldest = box[next(iter(box))].letter
            dropped.append(oldest)
            self.remove(oldest.sequence)
        self._fill(letter.address, now)
        return dropped

    def remove(self, sequence: int) -> Waiting | None:
        """A letter is no longer in OUT, or must not be sent any more."""
        address = self._owners.pop(sequence, None)
        if address is None:
            return None
        box = self._boxes[address]
        letter = box.pop(sequence).letter
        if not box:
            del self._boxes[address]
            self._greeted.pop(address, None)
        place = (address, letter.kind, letter.slot)
        if self._slots.get(place) == sequence:
            del self._slots[place]
        return letter

    def got(self, address: Address, ids: Iterable[str], now: float) -> list[Waiting]:
        """A device holds letters; ids that are not its own say nothing.

        Returns:
            What must be deleted from OUT.
        """
        named = set(ids)
        held = [letter for letter in self.of(address) if letter.letter_id in named]
        for letter in held:
            self.remove(letter.sequence)
        self._fill(address, now)
        return held

    def hello(self, address: Address, now: float) -> None:
        """A device is there: begin anew with its oldest letters.

        What is due already keeps its place: whoever says hello again since the queue is long would else stand at its
        end each time. And whoever says it without end is sent no letter more often than after `first_s`.
        """
        box = self._boxes.get(address)
        if box is None or 0 <= now - self._greeted.get(address, -inf) < self.limits.first_s:
            return
        self._greeted[address] = now
        for entry in box.values():
            entry.left, entry.pause_s = self.limits.attempts, self.limits.first_s
            if entry.next_at is None or entry.next_at > now:
                entry.active, entry.next_at = False, None
        self._fill(address, now)

    def due(self, now: float, limit: int) -> list[Waiting]:
        """At most `limit` letters to send now; each is scheduled again until its attempts are spent."""
        ready: list[Waiting] = []
        while self._schedule and self._schedule[0][0] <= now and len(ready) < limit:
            at, sequence = heapq.heappop(self._schedule)
            entry = self._entry(sequence)
            if entry is None or entry.next_at != at:
                continue
            ready.append(entry.letter)
            entry.left -= 1
            entry.next_at = None
            if entry.left > 0:
                self._plan(entry, now + entry.pause_s)
                entry.pause_s = min(2 * entry.pause_s, self.limits.limit_s)
        return ready

    def next_wake(self) -> float | None:
        """When `due` may have something."""
        return self._schedule[0][0] if self._schedule else None

    def expired(self, now: float) -> list[Waiting]:
        """Letters whose time is over, removed here and to be deleted from OUT."""
        over = []
        while self._expiries and self._expiries[0][0] <= now:
            letter = self.remove(heapq.heappop(self._expiries)[1])
            if letter is not None:
                over.append(letter)
        return over

    def _note_expiry(self, letter: Waiting) -> None:
        heapq.heappush(self._expiries, (letter.expires, letter.sequence))
        if len(self._expiries) > 2 * len(self._owners) + SPARE_ENTRIES:
            # A letter is mostly got within a second, and would stand here for days.
            self._expiries = [entry for entry in self._expiries if entry[1] in self._owners]
            heapq.heapify(self._expiries)

    def _fill(self, address: Address, now: float) -> None:
        entries = self._boxes.get(address, {}).values()
        room = self.limits.window - sum(entry.active for entry in entries)
        for entry in entries:
            if room <= 0:
                return
            if not entry.active:
                entry.active = True
                self._plan(entry, now)
                room -= 1

    def _plan(self, entry: _Entry, at: float) -> None:
        entry.next_at = at
        heapq.heappush(self._schedule, (at, entry.letter.sequence))

    def _entry(self, sequence: int) -> _Entry | None:
        address = self._owners.get(sequence)
        return self._boxes[address][sequence] if address is not None else None
