"""The MQTT connection: one at a time, reconnected with full jitter. Knows topics and bytes, no meanings."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from edge_runtime.cancelling import end_if_cancelled
from edge_runtime.link import mqtt
from edge_runtime.link.connection import Connection, Ears, Urgency
from edge_runtime.link.dialling import PHASE_TIMEOUT_S, Endpoint, explain, reach
from edge_runtime.link.liveness import Pulse, judge
from edge_runtime.link.measuring import LossMeter
from edge_runtime.logs import Log

__all__ = ["Callbacks", "Dial", "Endpoint", "Link", "Measured", "Urgency"]

log = Log(__name__)

KEEPALIVE_S = 60
"""Told to the server, which gives up a connection after 1.5 times as much silence; see `liveness`."""
WATCH_S = 1.0
FAREWELL_S = 2.0
"""For the last words of a clean end."""
MIN_DELAY_S = 1.0
"""The server holds back the same client id within a second of a drop."""
MAX_DELAY_S = 15.0
MAX_REFUSED_DELAY_S = 300.0
SAMPLE_S = 30.0
"""How often a round trip is measured."""
SETTLE_S = 10.0
"""How long bulky letters are held for that at most."""
NOISE_BYTES = 4_096
"""More than this between ping and answer, and the answer had to queue."""
RECENT_S = 90.0
"""The shortest round trip of this time counts as the path's own."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Everything that one connection needs."""

    endpoint: Endpoint
    client_id: str = field(repr=False)
    password: str = field(repr=False)
    filters: tuple[str, ...]
    will: tuple[str, bytes] | None
    certainly_past: datetime | None = None
    """A moment that is over for sure, for the certificate's end."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the link tells; all of them run in the event loop."""

    dial: Callable[[], Dial]
    """Asked before each connection, since credentials change and every session has its own last will."""
    up: Callable[[], None]
    """Connected and subscribed."""
    down: Callable[[], None]
    message: Callable[[str, bytes], None]
    drained: Callable[[], None]
    """There is room again for what found none."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of the present link; None: nothing yet.

    Attributes:
        round_trip_s: to the broker and back, smoothed; measured while nothing of this device fills the path.
        loss_ratio: share of packets that had to be repeated.
        up_bytes_per_s: rate that was reached when there was more to send than went.
        backlog_bytes: sent here and not acknowledged.
        congestion: how the kernel finds the rate of TCP, by its name for it.
    """

    round_trip_s: float | None = None
    loss_ratio: float | None = None
    up_bytes_per_s: float | None = None
    backlog_bytes: int = 0
    congestion: str | None = None


class Link:
    """Keeps a connection up until closed."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._attempt: _Attempt | None = None
        self._closing = False
        self._wake = asyncio.Event()
        self.problem: str | None = None
        """Why there is no connection; None while there is one."""
        self.refused = False
        """Whether the server answered the last attempt with a no."""
        self.connections = 0
        """How many there were since the start."""
        self._failures = 0
        self._unexpected = ""

    @property
    def connected(self) -> bool:
        """Whether publishes are taken."""
        return self._attempt is not None and self._attempt.ready

    @property
    def receiving(self) -> float | None:
        """Monotonic time of the last byte that came, of part of a message too; None while there is no connection."""
        attempt = self._attempt
        return attempt.connection.received_at() if attempt is not None and attempt.connection is not None else None

    def measured(self) -> Measured:
        """Figures of now."""
        return self._attempt.measured() if self._attempt is not None and self._attempt.ready else Measured()

    def room(self, urgency: Urgency, size: int = 0) -> bool:
        """Whether a message of this urgency and size should be given; `drained` tells when, if not."""
        attempt = self._attempt
        return attempt is not None and attempt.ready and attempt.room(urgency, size)

    def use_congestion(self, wish: Literal["system", "bbr"]) -> None:
        """How TCP shall find the rate of the present connection; `measured` says what the kernel uses."""
        if self._attempt is not None and self._attempt.connection is not None:
            self._attempt.connection.use_congestion(wish)

    def publish(self, topic: str, payload: bytes, urgency: Urgency = Urgency.SIGNAL) -> bool:
        """Hand a message to the network at QoS 0; False if there is no connection."""
        attempt = self._attempt
        return attempt is not None and attempt.ready and attempt.send(mqtt.publish(topic, payload), urgency)

    async def run(self) -> None:
        """Connect, and again after each loss, until `close`."""
        while not self._closing:
            try:
                await self._connect()
            except Exception as error:
                # Letters are kept and carriers go on meanwhile, which an end of the agent would stop.
                self._failures += 1
                self.problem, self.refused = f"connect: {error!r}; the log says where; it is tried again", False
                if self.problem != self._unexpected:
                    log.exception("link.failed")
                self._unexpected = self.problem
                log.warning("link.unreachable", reason=self.problem)
            end_if_cancelled()
            await self._pause(self._failures)

    def reconnect(self) -> None:
        """Drop the connection and make a new one, with new credentials for one."""
        self._wake.set()
        if self._attempt is not None:
            self._attempt.give_up("it was closed here")

    def close(self) -> None:
        """Let `run` end."""
        self._closing = True
        self.reconnect()

    async def _connect(self) -> None:
        """Connect, and serve until the connection is lost."""
        attempt = _Attempt(self._callbacks.dial(), self._callbacks)
        self._attempt = attempt
        try:
            await attempt.connect()
            self.problem, self.refused = None, False
            self.connections += 1
            log.info("link.up", host=attempt.dial.endpoint.host, port=attempt.dial.endpoint.port)
            self._callbacks.up()
            self._failures = 0
            self.problem = await attempt.lost
        except _RefusedError as error:
            self._failures += 1
            self.problem, self.refused = str(error), True
            log.error("link.refused", reason=str(error))
        except OSError as error:
            self._failures += 1
            self.refused = False
            self.problem = explain(attempt.dial.endpoint, error)
            log.warning("link.unreachable", reason=self.problem)
        finally:
            was_ready, attempt.ready = attempt.ready, False
            try:
                await attempt.close()
            finally:
                if was_ready:
                    log.warning("link.down", reason=self.problem)
                    self._callbacks.down()

    async def _pause(self, failures: int) -> None:
        if self._closing:
            return
        ceiling = MAX_REFUSED_DELAY_S if self.refused else MAX_DELAY_S
        spread = min(ceiling, MIN_DELAY_S * 2 ** min(failures, 12))
        self._wake.clear()
        try:
            async with asyncio.timeout(MIN_DELAY_S + random.uniform(0, spread)):  # noqa: S311
                await self._wake.wait()
        except TimeoutError:
            return


class _RefusedError(Exception):
    """The server answered and said no."""


class _Attempt:
    """One connection, from dialling to its end."""

    def __init__(self, dial: Dial, callbacks: Callbacks) -> None:
        loop = asyncio.get_running_loop()
        self.dial = dial
        self.ready = False
        self.connection: Connection | None = None
        self.lost: asyncio.Future[str] = loop.create_future()
        self._loop = loop
        self._callbacks = callbacks
        self._answer: asyncio.Future[mqtt.Packet] | None = None
        self._awaited = 0
        self._pinged: float | None = None
        self._sampling: int | None = None
        """Bytes received when the ping went out, if it went into an empty path."""
        self._sampled = float("-inf")
        self._round_trip: float | None = None
        self._recent: deque[tuple[float, float]] = deque()
        self._loss = LossMeter()
        self._watching: asyncio.TimerHandle | None = None

    async def connect(self) -> None:
        """Connect and subscribe.

        Raises:
            OSError: if the server cannot be reached or does not answer.
            _RefusedError: if it does not want this device.
        """
        dial = self.dial
        opened = await reach(dial.endpoint, dial.certainly_past)
        self.connection = Connection(opened, Ears(self._packet, self.give_up, self._callbacks.drained, self._ping))
        welcome = await self._ask(
            mqtt.connect(dial.client_id, "device", dial.password, KEEPALIVE_S, dial.will), mqtt.CONNACK
        )
        code = mqtt.read_connack(welcome)
        if code:
            raise _refusal(mqtt.REFUSALS.get(code, f"code {code}"))
        asked = time.monotonic()
        codes = mqtt.read_suback(await self._ask(mqtt.subscribe(1, dial.filters), mqtt.SUBACK))
        self._learn(time.monotonic() - asked)
        if mqtt.SUBACK_FAILURE in codes:
            raise _refusal("subscription refused")
        self.ready = True
        self._watch()

    def room(self, urgency: Urgency, size: int) -> bool:
        return self.connection is not None and self.connection.room(urgency, size)

    def send(self, packet: bytes, urgency: Urgency) -> bool:
        return self.connection is not None and self.connection.send(packet, urgency)

    def measured(self) -> Measured:
        assert self.connection is not None
        return Measured(
            round_trip_s=self._round_trip,
            loss_ratio=self._loss.ratio,
            up_bytes_per_s=self.connection.throughput.bytes_per_s,
            backlog_bytes=self.connection.backlog,
            congestion=self.connection.congestion,
        )

    def give_up(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    async def close(self) -> None:
        """End it, with DISCONNECT if that is still possible."""
        if self._watching is not None:
            self._watching.cancel()
        connection = self.connection
        self.ready = False
        if connection is None or connection.closed:
            return
        over: asyncio.Future[str] = self._loop.create_future()
        self.lost = over  # the server closes once it has read DISCONNECT
        try:
            if connection.send(mqtt.DISCONNECT, Urgency.SIGNAL):
                await asyncio.wait({over}, timeout=FAREWELL_S)
        finally:
            connection.close()

    async def _ask(self, packet: bytes, answer: int) -> mqtt.Packet:
        answered: asyncio.Future[mqtt.Packet] = self._loop.create_future()
        self._answer, self._awaited = answered, answer
        self.send(packet, Urgency.SIGNAL)
        both: set[asyncio.Future[Any]] = {answered, self.lost}
        async with asyncio.timeout(PHASE_TIMEOUT_S):
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise ConnectionResetError(f"{self.lost.result()} before it answered")
        return answered.result()

    def _packet(self, packet: mqtt.Packet) -> None:
        if packet.type == mqtt.PUBLISH:
            topic, payload = mqtt.read_publish(packet)
            if self.ready:
                self._callbacks.message(topic, payload)
        elif packet.type == mqtt.PINGRESP:
            self._ponged()
        elif self._answer is not None and packet.type == self._awaited and not self._answer.done():
            self._answer.set_result(packet)
        else:
            raise mqtt.ProtocolError(f"an unexpected packet of type 0x{packet.type:02x}")

    def _learn(self, sample_s: float) -> None:
        self._round_trip = sample_s if self._round_trip is None else 0.75 * self._round_trip + 0.25 * sample_s
        self._sampled = time.monotonic()
        self._remember(sample_s)

    def _remember(self, sample_s: float) -> None:
        now = time.monotonic()
        while self._recent and (self._recent[0][0] < now - RECENT_S or self._recent[-1][1] >= sample_s):
            # What is older and longer will never be the shortest again.
            self._recent.popleft() if self._recent[0][0] < now - RECENT_S else self._recent.pop()
        self._recent.append((now, sample_s))
        if self.connection is not None:
            self.connection.round_trip_s = self._recent[0][1]

    def _ping(self) -> None:
        connection = self.connection
        if connection is None or self._pinged is not None:
            return
        empty = not connection.backlog and not connection.incoming
        if connection.send(mqtt.PINGREQ, Urgency.SIGNAL):
            self._pinged = time.monotonic()
            self._sampling = connection.received if empty else None

    def _ponged(self) -> None:
        if self._pinged is None or self.connection is None:
            return
        if self._sampling is not None and self.connection.received - self._sampling < NOISE_BYTES:
            self._learn(time.monotonic() - self._pinged)
        self._pinged = None

    def _watch(self) -> None:
        """Ping after silence, hang up after more of it, and learn from what the kernel measured."""
        connection = self.connection
        if connection is None or connection.closed:
            return
        now, known = time.monotonic(), connection.facts()
        if known is not None:
            self._loss = self._loss.with_totals(known.segments, known.repeated)
            self._remember(known.round_trip_s)
        acknowledged = now - known.since_ack_s if known is not None else None
        pulse = Pulse(connection.received_at(), connection.spoke, acknowledged, self._pinged, connection.round_trip_s)
        verdict = judge(pulse, now)
        if verdict == "gone":
            connection.close()
            self.give_up(f"nothing was heard for {now - connection.heard:.0f} s")
            return
        if verdict == "ping":
            self._ping()
        elif self._pinged is None and now - self._sampled >= SAMPLE_S:
            self._sampled = now  # whatever comes of it, not again at once
            connection.settle(SETTLE_S)
        self._watching = self._loop.call_later(WATCH_S, self._watch)


def _refusal(reason: str) -> _RefusedError:
    return _RefusedError(
        f"the server refused this device's credentials ({reason}): they expired or were revoked; "
        "enrol anew with a token from the operator (`causeway-edge enrol --again TOKEN`)"
    )
