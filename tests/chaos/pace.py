"""How much of a load is due at a moment. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from schemas.events import Lane

POLL_S = 0.2
PATTERN: tuple[Lane, ...] = ("normal", "bulk", "control", "normal", "bulk")
"""Lanes of letters up, in turn."""


class Go(BaseModel):
    """The beginning of the load, as a file that every process reads when it is there."""

    start: float
    """Seconds since 1970."""
    duration_s: float

    @classmethod
    def read(cls, path: Path) -> Go | None:
        """None as long as it is not written."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else None

    @classmethod
    async def wait(cls, path: Path) -> Go:
        """Until it is written."""
        while (go := cls.read(path)) is None:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(POLL_S)
        return go

    def due(self, total: int, now: float) -> int:
        """How many of `total` should have been sent by now."""
        return int(total * min(1.0, max(0.0, (now - self.start) / self.duration_s)))


@dataclass
class Numbers:
    """A program's own numbers, per lane from 1."""

    highest: dict[str, int]

    @property
    def sent(self) -> int:
        """All of them."""
        return sum(self.highest.values())

    def take(self, count: int) -> Iterator[tuple[Lane, int]]:
        """The next ones."""
        for _ in range(count):
            lane = PATTERN[self.sent % len(PATTERN)]
            self.highest[lane] = self.highest.get(lane, 0) + 1
            yield lane, self.highest[lane]
