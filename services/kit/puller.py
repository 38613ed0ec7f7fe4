"""Reading a stream in bursts: a pull request is always waiting at the server, and whatever has arrived is handed out.

nats-py's `fetch` either waits for a full batch or makes two requests for each; this one returns the first burst at
once, and tells an empty stream from a consumer that is gone.

nats-server before 2.9.15 drops a request without a word if a message comes just when it expires (mended by its PR
3942), and any answer may get lost. So no request is waited for to its end: the next one is made before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from services.kit.bus import Bus
from services.kit.errors import PlatformError

log = structlog.get_logger()

SCAN_BATCH = 256
"""Twice as many of 64 KiB may be under way, and nats-server ends a connection that is 64 MiB behind."""
GRACE_S = 2.0
RENEW = 0.8
"""After this part of its life a request is followed by the next."""
INACTIVE_S = 60.0
QUIET_S = 1.0
NO_MESSAGE = 10037
"""JetStream's number of "no message found"."""
_EMPTY = frozenset({"404", "408"})


class PullError(PlatformError):
    """The consumer does not answer or is gone; make it again."""

    code = "pull_failed"


class Puller:
    """One reader of one consumer."""

    def __init__(self, nc: Client, stream: str, consumer: str) -> None:
        self._nc = nc
        self._stream = stream
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = nc.new_inbox()
        self._subscription: Subscription | None = None
        self._buffer: deque[Msg] = deque()
        self._requests = 0
        self._outstanding = 0
        self._renew_at = 0.0
        self._asked_at: float | None = None
        self._broken: str | None = None
        self._nudged = False
        self._arrived = asyncio.Event()

    async def open(self) -> None:
        """Listen for what will be pulled."""
        self._subscription = await self._nc.subscribe(f"{self._inbox}.*", cb=self._receive)

    async def close(self) -> None:
        """Stop listening; a lost connection did so already."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._nc.is_closed:
            try:
                await subscription.unsubscribe()
            except NatsError as error:
                log.debug("puller.not_closed", error=repr(error))

    def interrupt(self, why: str) -> None:
        """Have `take` raise at once, since a restarted server forgot the request; what was not taken yet is dropped."""
        self._broken = why
        self._buffer.clear()
        self._arrived.set()

    def nudge(self) -> None:
        """Have `take` return at once, or at its next call if nobody waits in it: there is other work."""
        self._nudged = True
        self._arrived.set()

    async def take(self, limit: int, wait_s: float) -> list[Msg]:
        """Messages that are there, at most `limit`; as soon as there is one, or none after `wait_s` or a nudge.

        Raises:
            PullError: if the consumer is gone or silent.
        """
        if not self._buffer:
            await self._wait(limit, wait_s)
        return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]

    async def _wait(self, limit: int, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + wait_s
        if self._asked_at is not None:
            # Nobody asked again while nobody waited, so that was no silence.
            self._asked_at = loop.time()
        while not self._buffer and self._broken is None:
            if self._asked_at is None and loop.time() >= ends_at:
                break
            self._arrived.clear()
            # Before a nudge counts: where there always is other work, a request must be waiting all the same.
            if not self._outstanding or loop.time() >= self._renew_at:
                await self._request(limit, wait_s)
            if self._nudged:
                break
            # Only an answer tells an empty stream from silence.
            until = ends_at if self._asked_at is None else self._asked_at + wait_s + GRACE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(self._renew_at, until)):
                    await self._arrived.wait()
            if self._asked_at is not None and loop.time() >= self._asked_at + wait_s + GRACE_S:
                self._broken = f"no answer within {wait_s + GRACE_S} s"
        self._nudged = False
        if self._broken is not None:
            raise PullError(f"pull from {self._stream}: {self._broken}")

    async def _request(self, limit: int, wait_s: float) -> None:
        now = asyncio.get_running_loop().time()
        self._requests += 1
        self._outstanding, self._renew_at = limit, now + RENEW * wait_s
        self._asked_at = self._asked_at or now
        request = {"batch": limit, "expires": int(wait_s * 1e9)}
        await self._nc.publish(self._next, json.dumps(request).encode(), reply=self._reply())

    def _reply(self) -> str:
        return f"{self._inbox}.{self._requests}"

    async def _receive(self, message: Msg) -> None:
        if self._broken is not None:
            return
        self._asked_at = None
        status = message.headers.get("Status") if message.headers and not message.data else None
        if status is None:
            self._buffer.append(message)
            self._outstanding = max(0, self._outstanding - 1)
        elif status in _EMPTY:
            # An earlier request's says nothing: the newest one is waiting.
            if message.subject == self._reply():
                self._outstanding = 0
        else:
            self._broken = f"{status} {message.headers.get('Description', '') if message.headers else ''}".strip()
        self._arrived.set()


async def open_consumer(bus: Bus, stream: str, config: ConsumerConfig) -> Puller:
    """A reader of a consumer, which is made unless it is there.

    Raises:
        nats.errors.Error: if the stream is missing or JetStream does not answer.
    """
    info = await bus.js.add_consumer(stream, config)
    puller = Puller(bus.nc, stream, info.name)
    await puller.open()
    return puller


async def open_reader(
    bus: Bus, stream: str, start: int, *, headers_only: bool = False, subject: str | None = None
) -> Puller:
    """A reader from a sequence on, of a consumer of its own, which goes by itself when it is not read.

    Raises:
        nats.errors.Error: as `open_consumer`.
    """
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=max(1, start),
        headers_only=headers_only or None,
        filter_subject=subject,
        inactive_threshold=INACTIVE_S,
    )
    return await open_consumer(bus, stream, config)


async def scan(
    bus: Bus, stream: str, start: int = 1, *, headers_only: bool = False, subject: str | None = None
) -> AsyncIterator[Msg]:
    """Every message, or those of one subject, from `start` to what is last when the scan begins.

    Raises:
        PullError: if the last was not reached though it is there, or something on the way to it was lost.
        nats.errors.Error: as `open_consumer`.

    The last ones may have been deleted, and the server's counts are wrong after deletes; then the end is where nothing
    comes for a while.
    """
    last = await _last_of(bus, stream, subject)
    if last is not None and start > last:
        return
    seen, taken = start - 1, 0
    puller = await open_reader(bus, stream, start, headers_only=headers_only, subject=subject)
    try:
        while (last is None or seen < last) and (batch := await puller.take(SCAN_BATCH, QUIET_S)):
            for message in batch:
                taken += 1
                if _delivery_of(message) != taken:
                    # A connection that broke: the consumer goes on behind what it had sent.
                    raise PullError(f"read {stream} from {start}: what follows {seen} was lost on the way; try again")
                yield message
                seen = sequence_of(message)
    finally:
        await puller.close()
    if last is not None and seen < last and await _holds(bus, stream, last):
        raise PullError(f"read {stream} from {start} to {last}: it ended at {seen} though {last} is there; try again")


async def _last_of(bus: Bus, stream: str, subject: str | None) -> int | None:
    """Sequence of the last one, 0 if there is none; None if the server does not know."""
    if subject is None:
        return (await bus.js.stream_info(stream)).state.last_seq
    try:
        return (await bus.js.get_last_msg(stream, subject)).seq or 0
    except NotFoundError as error:
        if error.err_code != NO_MESSAGE:
            raise
        # 2.9.10 also says so where the last of several subjects was deleted.
        return None if "*" in subject or ">" in subject else 0


async def _holds(bus: Bus, stream: str, sequence: int) -> bool:
    try:
        await bus.js.get_msg(stream, seq=sequence)
    except NotFoundError:
        return False
    return True


def sequence_of(message: Msg) -> int:
    """Place in its stream."""
    return int(_acknowledgement(message)[-4])


def _delivery_of(message: Msg) -> int:
    """Its number among those that the consumer sent."""
    return int(_acknowledgement(message)[-3])


def stored_s(message: Msg) -> float:
    """When its stream took it, in seconds since 1970."""
    return int(_acknowledgement(message)[-2]) / 1e9


def _acknowledgement(message: Msg) -> list[str]:
    # $JS.ACK.[domain.account.]stream.consumer.deliveries.sequence.delivery.time.pending[.random]
    parts = message.reply.split(".")
    return parts if len(parts) == 9 else parts[:11]
