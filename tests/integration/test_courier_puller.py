"""The courier's reader of streams against a real nats-server, with what may get lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig

from services.courier.up.puller import GRACE_S, Puller, PullError
from services.kit.bus import Bus, connect
from services.kit.streams import IN, ensure_owned
from tests.support.platform import LivePlatform

SUBJECT = "cw.in.event.home.cam-1"
CONSUMER = "reader"


@asynccontextmanager
async def reading(live: LivePlatform) -> AsyncIterator[Bus]:
    bus = await connect(live.state, live.settings, "courier")
    try:
        await ensure_owned(bus.js, "courier")
        await bus.js.add_consumer(IN.name, ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.NONE))
        yield bus
    finally:
        await bus.close()


class Lossy:
    """A connection on which the first requests, or all statuses, get lost."""

    def __init__(self, nc: Client, *, requests: int = 0, statuses: bool = False) -> None:
        self._nc = nc
        self._requests = requests
        self._statuses = statuses
        self.lost = 0

    def new_inbox(self) -> str:
        return self._nc.new_inbox()

    async def subscribe(self, subject: str, cb: Callable[[Msg], Awaitable[None]]) -> Subscription:
        async def receive(message: Msg) -> None:
            if self._statuses and message.headers:
                self.lost += 1
            else:
                await cb(message)

        return await self._nc.subscribe(subject, cb=receive)

    async def publish(self, subject: str, payload: bytes, reply: str) -> None:
        if self.lost < self._requests:
            self.lost += 1
        else:
            await self._nc.publish(subject, payload, reply=reply)


async def test_requests_that_expire_while_messages_come_do_not_stall(live: LivePlatform) -> None:
    """nats-server 2.9.10 leaves about one of ten such requests without any answer."""
    async with reading(live) as bus:
        puller = Puller(bus.nc, IN.name, CONSUMER)
        await puller.open()
        loop = asyncio.get_running_loop()
        begun, sent, taken, heard, longest = loop.time(), 0, 0, loop.time(), 0.0
        while (now := loop.time()) < begun + 3:
            await bus.nc.publish(SUBJECT, b"{}")
            sent += 1
            if await puller.take(1_000, 0.02):
                longest, heard, taken = max(longest, now - heard), now, taken + 1
        assert longest < GRACE_S / 2
        assert taken > 50


async def test_a_lost_request_is_followed_by_the_next(live: LivePlatform) -> None:
    async with reading(live) as bus:
        lossy = Lossy(bus.nc, requests=1)
        puller = Puller(cast("Client", lossy), IN.name, CONSUMER)
        await puller.open()
        await bus.nc.publish(SUBJECT, b"{}")
        async with asyncio.timeout(GRACE_S):
            [message] = await puller.take(10, 1.0)
        assert (message.subject, lossy.lost) == (SUBJECT, 1)


async def test_lost_statuses_stall_nothing(live: LivePlatform) -> None:
    async with reading(live) as bus:
        lossy = Lossy(bus.nc, statuses=True)
        puller = Puller(cast("Client", lossy), IN.name, CONSUMER)
        await puller.open()
        taking = asyncio.create_task(puller.take(10, 0.5))
        async with asyncio.timeout(GRACE_S):
            while not lossy.lost:
                await bus.nc.flush()
            await bus.nc.publish(SUBJECT, b"{}")
            assert len(await taking) == 1


async def test_silence_is_told_from_a_consumer_that_is_gone(live: LivePlatform) -> None:
    async with reading(live) as bus:
        puller = Puller(bus.nc, IN.name, CONSUMER)
        await puller.open()
        for _ in range(3):
            assert await puller.take(10, 0.2) == []
        await bus.nc.publish(SUBJECT, b"{}")
        assert len(await puller.take(10, 0.2)) == 1
        await bus.js.delete_consumer(IN.name, CONSUMER)
        with pytest.raises(PullError):
            await puller.take(10, 0.2)
