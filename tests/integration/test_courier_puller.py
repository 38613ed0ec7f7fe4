"""The courier's reader of streams against a real nats-server, with what may get lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig

from services.kit.bus import Bus, connect
from services.kit.puller import GRACE_S, Puller, PullError, scan
from services.kit.streams import IN, ensure_owned
from tests.support.platform import LivePlatform

SUBJECT = "cw.in.event.home.cam-1"
CONSUMER = "reader"
LIMIT_S = 10
"""Of what takes less than a second."""


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
    """A connection on which the first requests, all statuses, or some messages behind the first ones get lost."""

    def __init__(
        self,
        nc: Client,
        *,
        requests: int = 0,
        statuses: bool = False,
        after: float = float("inf"),
        messages: float = float("inf"),
    ) -> None:
        self._nc = nc
        self._requests = requests
        self._statuses = statuses
        self._after = after
        self._messages = messages
        self.lost = 0
        self.sent = 0
        self.is_closed = False

    def new_inbox(self) -> str:
        return self._nc.new_inbox()

    async def subscribe(self, subject: str, cb: Callable[[Msg], Awaitable[None]]) -> Subscription:
        async def receive(message: Msg) -> None:
            gone = not message.headers and -self._messages < self._after <= 0
            if gone:
                self._after -= 1
            if gone or (self._statuses and message.headers):
                self.lost += 1
            else:
                self._after -= 1
                await cb(message)

        return await self._nc.subscribe(subject, cb=receive)

    async def publish(self, subject: str, payload: bytes, reply: str) -> None:
        if self.lost < self._requests:
            self.lost += 1
        else:
            self.sent += 1
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
            if batch := await puller.take(1_000, 0.02):
                longest, heard, taken = max(longest, now - heard), now, taken + len(batch)
        assert max(longest, loop.time() - heard) < 2  # without renewal nothing comes any more after the first such one
        assert taken >= 0.9 * sent > 50


async def test_a_lost_request_is_followed_by_the_next(live: LivePlatform) -> None:
    async with reading(live) as bus:
        lossy = Lossy(bus.nc, requests=1)
        puller = Puller(cast("Client", lossy), IN.name, CONSUMER)
        await puller.open()
        await bus.nc.publish(SUBJECT, b"{}")
        async with asyncio.timeout(LIMIT_S):
            [message] = await puller.take(10, 1.0)
        assert (message.subject, lossy.lost) == (SUBJECT, 1)


async def test_lost_statuses_stall_nothing(live: LivePlatform) -> None:
    async with reading(live) as bus:
        lossy = Lossy(bus.nc, statuses=True)
        puller = Puller(cast("Client", lossy), IN.name, CONSUMER)
        await puller.open()
        taking = asyncio.create_task(puller.take(10, 0.5))
        async with asyncio.timeout(LIMIT_S):
            while not lossy.lost:
                await bus.nc.flush()
            await bus.nc.publish(SUBJECT, b"{}")
            assert len(await taking) == 1


async def test_letters_come_while_there_always_is_other_work(live: LivePlatform) -> None:
    """The intake nudges its reader at each turn while bundles or errands wait."""
    async with reading(live) as bus:
        lossy = Lossy(bus.nc)
        puller = Puller(cast("Client", lossy), IN.name, CONSUMER)
        await puller.open()
        taken: list[Msg] = []

        async def until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(5):
                while not condition():
                    puller.nudge()
                    taken.extend(await puller.take(10, 0.2))
                    await asyncio.sleep(0)

        # The first of these requests has expired when the last one is made.
        await until(lambda: lossy.sent > 2)
        await bus.nc.publish(SUBJECT, b"{}")
        await until(lambda: len(taken) == 1)
        assert lossy.sent < 30


async def test_a_pause_in_which_nobody_takes_is_no_silence(live: LivePlatform) -> None:
    async with reading(live) as bus:
        lossy = Lossy(bus.nc, requests=1)
        puller = Puller(cast("Client", lossy), IN.name, CONSUMER)
        await puller.open()
        puller.nudge()
        assert await puller.take(10, 0.02) == []
        asked, silence = asyncio.get_running_loop().time(), 0.02 + GRACE_S
        async with asyncio.timeout(5):
            while asyncio.get_running_loop().time() <= asked + silence:
                await bus.nc.flush()
        assert lossy.lost == 1
        assert await puller.take(10, 0.02) == []


async def test_an_earlier_requests_end_is_not_that_of_the_newest(live: LivePlatform) -> None:
    async with reading(live) as bus:
        puller = Puller(bus.nc, IN.name, CONSUMER)
        await puller.open()
        loop = asyncio.get_running_loop()
        await bus.nc.publish(SUBJECT, b"{}")
        assert len(await puller.take(10, 0.5)) == 1
        # That request waits for nine more, and ends within the next take, which makes one of its own.
        while loop.time() < puller._renew_at:
            await bus.nc.flush()
        begun = loop.time()
        assert await puller.take(10, 0.5) == []
        assert loop.time() - begun >= 0.5


async def test_an_interrupted_reader_hands_out_nothing_of_the_lost_connection(live: LivePlatform) -> None:
    async with reading(live) as bus:
        for _ in range(3):
            await bus.nc.publish(SUBJECT, b"{}")
        puller = Puller(bus.nc, IN.name, CONSUMER)
        await puller.open()
        assert len(await puller.take(1, 1.0)) == 1
        puller._buffer.append(Msg(bus.nc))
        puller.interrupt("the connection was lost")
        await puller._receive(Msg(bus.nc, subject=SUBJECT))
        with pytest.raises(PullError, match="the connection was lost"):
            await puller.take(1, 1.0)


@pytest.mark.parametrize("subject", [None, "cw.in.*.home.cam-1"])
async def test_a_scan_that_does_not_reach_its_end_says_so(live: LivePlatform, subject: str | None) -> None:
    async with reading(live) as bus:
        sequences = [(await bus.js.publish(SUBJECT, b"{}")).seq for _ in range(3)]
        assert len([message async for message in scan(bus, IN.name, subject=subject)]) == 3
        await bus.js.publish("cw.in.event.home.cam-2", b"{}")
        for nobodys in ("cw.in.*.home.cam-3", "cw.in.event.home.cam-3"):
            assert [message async for message in scan(bus, IN.name, subject=nobodys)] == []
        lossy = cast("Bus", SimpleNamespace(nc=Lossy(bus.nc, after=2), js=bus.js))
        with pytest.raises(PullError, match="it ended at 2 though"):
            _ = [message async for message in scan(lossy, IN.name, subject=subject)]
        lossy = cast("Bus", SimpleNamespace(nc=Lossy(bus.nc, after=1, messages=1), js=bus.js))
        with pytest.raises(PullError, match="what follows 1 was lost on the way"):
            _ = [message async for message in scan(lossy, IN.name, subject=subject)]
        # What was deleted meanwhile is no longer missed.
        for sequence in [*sequences[2:], 4]:
            await bus.js.delete_msg(IN.name, sequence)
        assert len([message async for message in scan(bus, IN.name, subject=subject)]) == 2


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
