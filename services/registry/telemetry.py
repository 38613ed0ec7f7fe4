"""Reads TELEMETRY into the table: the newest word of each subject first, then everything as it comes.

Bare nats-py, and pulls of its own instead of `fetch`, which costs 29 microseconds a message where this costs 5.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError
from prometheus_client import Counter

from services.kit.bus import Bus, wait_for
from services.kit.errors import UnreachableError
from services.kit.rejects import REJECTED, Rejects
from services.kit.streams import TELEMETRY
from services.registry.table import Absorbed, Bad, Table

log = structlog.get_logger()

PULLS = 3
IDLE_S = 1.0
RETRY_S = 0.5
INACTIVE_S = 60.0

HEARTBEATS = Counter("causeway_heartbeats", "Heartbeats read from TELEMETRY, by outcome.", ["outcome"])
UNKEPT = Counter("causeway_rejects_unkept", "Refused state messages that were counted but not kept in REJECTS.")


class Telemetry:
    """One ephemeral consumer, made again whenever the connection, the server or the consumer was lost."""

    def __init__(self, bus: Bus, table: Table, rejects: Rejects, *, batch: int, rejects_per_s: int) -> None:
        self._bus = bus
        self._table = table
        self._rejects = rejects
        self._batch = batch
        self._allowance = Allowance(rejects_per_s)
        self._again = asyncio.Event()
        self._puller: _Puller | None = None
        self._read_up_to: float | None = None

    async def run(self, caught_up: Callable[[], None]) -> None:
        """Read until cancelled; `caught_up` is called when what the stream held has been read."""
        self._bus.on_reconnect(self._restart)
        while True:
            try:
                await self._session(caught_up)
            except (NatsError, TimeoutError, UnreachableError) as error:
                log.warning("telemetry.retried", error=repr(error))
                await asyncio.sleep(RETRY_S)

    def horizon(self) -> float | None:
        """The moment up to which every word has been read; None while that is not known."""
        return self._read_up_to if self._bus.nc.is_connected else None

    async def _restart(self) -> None:
        self._again.set()
        if self._puller is not None:
            self._puller.wake()

    async def _session(self, caught_up: Callable[[], None]) -> None:
        self._again.clear()
        self._read_up_to = None
        config = ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
            filter_subject=TELEMETRY.subjects[0],
            inactive_threshold=INACTIVE_S,
            mem_storage=True,
        )
        newest = (await wait_for(lambda: self._bus.js.stream_info(TELEMETRY.name), "stream TELEMETRY")).state
        puller = self._puller = _Puller(self._bus, self._batch)
        await puller.start(await self._create(config))
        self._table.restart(time.time())
        remaining = newest.last_seq if newest.messages else 0
        read, done = 0, False
        try:
            while not self._again.is_set():
                if not done and read >= remaining:
                    done = True
                    log.info("telemetry.caught_up", devices=len(self._table))
                    caught_up()
                words = await puller.take(IDLE_S)
                # Silence also means that all was read: the newest word may have left the stream meanwhile.
                read = _sequence(words[-1].reply) if words else remaining
                newest_at = await self._absorb(words) if words else time.time()
                if done:
                    self._read_up_to = newest_at
        finally:
            await puller.stop()

    async def _create(self, config: ConsumerConfig) -> str:
        # A name of its own: without one nats-py uses the old API, which knows durable consumers only by name.
        config.name = f"registry-{time.time_ns()}"
        info = await self._bus.js.add_consumer(TELEMETRY.name, config)
        return info.name or config.name

    async def _absorb(self, words: list[Msg]) -> float:
        batch = [(word.subject, word.data, _taken_at(word.reply)) for word in words]
        result = self._table.absorb(batch)
        HEARTBEATS.labels("accepted").inc(result.heartbeats)
        for why, count in result.passed_over.items():
            HEARTBEATS.labels(why).inc(count)
        if result.bad:
            await self._refuse(result)
        return batch[-1][2]

    async def _refuse(self, result: Absorbed) -> None:
        HEARTBEATS.labels("bad").inc(result.bad.total())
        unkept = result.bad.copy()
        for bad in result.shown:
            if self._allowance.take(time.monotonic()):
                await self._keep(bad)
                unkept[bad.kind, bad.reason] -= 1
        UNKEPT.inc(unkept.total())
        for (kind, reason), count in unkept.items():
            REJECTED.labels("registry", kind, reason).inc(count)

    async def _keep(self, bad: Bad) -> None:
        await self._rejects.keep(
            bad.payload, subject=bad.subject, kind=bad.kind, reason=bad.reason, message=bad.message
        )


class Allowance:
    """So many per second and no more."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = float(per_s)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more is allowed at `now` (monotonic seconds)."""
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Puller:
    """Keeps a few pulls out, without expiry, so that the stream's pace is this reader's and nothing is dropped."""

    def __init__(self, bus: Bus, batch: int) -> None:
        self._bus = bus
        self._batch = batch
        self._waiting: list[Msg] = []
        self._arrived = asyncio.Event()
        self._owed = 0
        self._lost = ""
        self._consumer = ""
        self._inbox = ""
        self._subscription: Subscription | None = None

    async def start(self, consumer: str) -> None:
        self._consumer = consumer
        self._inbox = self._bus.nc.new_inbox()
        self._subscription = await self._bus.nc.subscribe(self._inbox, cb=self._arrive)
        for _ in range(PULLS):
            await self._pull()

    async def stop(self) -> None:
        if self._subscription is not None and self._bus.nc.is_connected:
            try:
                await self._subscription.unsubscribe()
                await self._bus.js.delete_consumer(TELEMETRY.name, self._consumer)
            except (NatsError, TimeoutError) as error:
                # It ends by itself when nobody pulls.
                log.debug("telemetry.consumer_left", error=repr(error))

    def wake(self) -> None:
        """Have `take` return."""
        self._arrived.set()

    async def take(self, idle_s: float) -> list[Msg]:
        """Everything that has arrived; empty after `idle_s` of silence from a consumer that is still there."""
        if self._lost:
            raise NotFoundError(description=f"consumer {self._consumer} gave a pull up: {self._lost}")
        if not self._waiting:
            self._arrived.clear()
            try:
                async with asyncio.timeout(idle_s):
                    await self._arrived.wait()
            except TimeoutError:
                await self._bus.js.consumer_info(TELEMETRY.name, self._consumer)
                return []
        words, self._waiting = self._waiting, []
        self._owed += len(words)
        while self._owed >= self._batch:
            self._owed -= self._batch
            await self._pull()
        return words

    async def _arrive(self, message: Msg) -> None:
        if message.subject == self._inbox:
            # A status instead of a word: the server gave this pull up.
            self._lost = str(message.headers)
        else:
            self._waiting.append(message)
        self._arrived.set()

    async def _pull(self) -> None:
        request = json.dumps({"batch": self._batch}).encode()
        await self._bus.nc.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{TELEMETRY.name}.{self._consumer}", request, reply=self._inbox
        )


def _taken_at(reply: str) -> float:
    """When the stream took a message, from its ack subject: nine levels, or twelve with a domain."""
    levels = reply.split(".")
    return int(levels[7] if len(levels) == 9 else levels[9]) / 1e9


def _sequence(reply: str) -> int:
    levels = reply.split(".")
    return int(levels[5] if len(levels) == 9 else levels[7])
