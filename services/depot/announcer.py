"""Says in EVENTS what came into effect, when the stream is there to hear it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from nats.errors import Error as NatsError
from pydantic import BaseModel

log = structlog.get_logger()

RETRY_S = 1.0
MAX_WAITING = 1_024

Announce = Callable[[str, BaseModel], Awaitable[None]]


class Announcer:
    """Sends facts in order, each until the stream has it; a publication never waits for it.

    What a crash takes with it is not lost: bucket `releases` is made to say the same at the next start.
    """

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self._waiting: asyncio.Queue[tuple[str, BaseModel]] = asyncio.Queue(MAX_WAITING)

    def say(self, event: str, data: BaseModel) -> None:
        """Queue a fact; if very many wait, the oldest is dropped and logged."""
        if self._waiting.full():
            dropped, _ = self._waiting.get_nowait()
            log.error("announcement.dropped", name=dropped)
        self._waiting.put_nowait((event, data))

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            event, data = await self._waiting.get()
            while True:
                try:
                    await self._announce(event, data)
                    break
                except (NatsError, TimeoutError) as error:
                    log.warning("announcement.retried", name=event, error=repr(error))
                    await asyncio.sleep(RETRY_S)
