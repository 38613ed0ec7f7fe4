"""Letters that came in bundles, on their way from the unpacker to the intake: few groups at a time, in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MAX_WAITING = 8
"""Groups that wait for the intake; each is one bundle's contents, 4 MiB at most."""


@dataclass(frozen=True, slots=True)
class CarriedLetter:
    """A letter as if it had come over the bus."""

    subject: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one group's letters."""

    stored: int = 0
    duplicate: int = 0
    early: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """The letters of one bundle; `done` is resolved once each is stored, known, refused or too early."""

    letters: tuple[CarriedLetter, ...]
    done: asyncio.Future[Judged] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class CarriedLetters:
    """A queue whose head stays until it is judged, so that a failed attempt to store it is repeated in order."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self._room = asyncio.Semaphore(limit)
        self._groups: deque[Group] = deque()
        self._listener: Callable[[], None] | None = None

    def on_put(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when there is something to take."""
        self._listener = listener

    async def deliver(self, letters: Sequence[CarriedLetter]) -> Judged:
        """Wait until the intake has judged them; for as long as it is recovering, too."""
        async with self._room:
            group = Group(tuple(letters))
            self._groups.append(group)
            if self._listener is not None:
                self._listener()
            return await group.done

    def first(self) -> Group | None:
        """The oldest group, which stays."""
        while self._groups and self._groups[0].done.cancelled():
            self._groups.popleft()
        return self._groups[0] if self._groups else None

    def judged(self, result: Judged) -> bool:
        """The oldest group is done with. Returns whether more wait."""
        group = self._groups.popleft()
        if not group.done.cancelled():
            group.done.set_result(result)
        return bool(self._groups)
