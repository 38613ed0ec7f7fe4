"""Lets the faults of a plan happen at their times, and waits until everything has settled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.chaos.plan import Fault

Hit = Callable[[Fault, int], Awaitable[str]]


@dataclass
class Storm:
    """One run of a plan.

    Attributes:
        hits: what was really hit, in the order of the beginnings.
        errors: faults that could not be carried out, which must not be mistaken for survived ones.
    """

    plan: list[Fault]
    seed: int
    say: Callable[[str], None]
    hits: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def blow(self, hit: Hit) -> None:
        """Return once the last fault is mended."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.TaskGroup() as group:
            for number, fault in enumerate(self.plan):
                await asyncio.sleep(max(0.0, start + fault.at_s - loop.time()))
                self.say(str(fault))
                group.create_task(self._hit(hit, fault, number))

    async def _hit(self, hit: Hit, fault: Fault, number: int) -> None:
        try:
            self.hits.append(f"{fault} -> {await hit(fault, self.seed + number)}")
        except Exception as error:  # noqa: BLE001 - the others must still be mended; the report fails on it
            self.errors.append(f"{fault}: {error!r}")
