"""One open connection: packets out in the order of their urgency, packets in, and what both tell of the link.

What waits is kept short in time (`measuring`), so that on a slow link a control letter or a ping passes what is bulky:
little is in the kernel, and everything that is still here is overtaken.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from edge_runtime.link import sockets
from edge_runtime.link.measuring import MAX_BACKLOG_BYTES, SAMPLE_S, Throughput
from edge_runtime.link.mqtt import Packet, PacketReader, ProtocolError

CHUNK_BYTES = 16 * 1024
"""Handed to the kernel at a time; also the length of a TLS record."""
READ_BYTES = 64 * 1024
READS_PER_TURN = 8
"""Then others have a turn; nothing is dropped, since what is not read keeps the sender waiting."""
TICK_S = 0.05
"""How often a backlog is looked at; nothing tells when the other end acknowledges."""


class Urgency(IntEnum):
    """Lower overtakes higher."""

    SIGNAL = 0
    """Keep-alive and state: small, and the connection hangs on some of it."""
    CONTROL = 1
    REST = 2


@dataclass(frozen=True, slots=True)
class Ears:
    """Who is told."""

    packet: Callable[[Packet], None]
    lost: Callable[[str], None]
    """Once, with the reason."""
    drained: Callable[[], None]
    """There is room again for what found none."""
    settled: Callable[[], None]
    """Everything that was sent is there, as `settle` asked for."""


class Connection:
    """Owns a connected, non-blocking socket (TLS or not) until `close`.

    Attributes:
        received: bytes that came since the beginning.
        heard: monotonic time of the last byte that came.
        spoke: monotonic time of the last byte that the kernel took.
        throughput: upwards.
        congestion: how the kernel finds the rate, by its name for it; None where it does not say.
    """

    def __init__(self, sock: socket.socket, ears: Ears) -> None:
        self._sock = sock
        self._ears = ears
        self._loop = asyncio.get_running_loop()
        self._queues: tuple[deque[bytes], ...] = tuple(deque() for _ in Urgency)
        self._queued = [0 for _ in Urgency]
        self._current = memoryview(b"")
        self._reader = PacketReader()
        self._closed = False
        self._writing = False
        self._refused = False
        self._wanted = 0
        self._limited = False
        self._tick: asyncio.TimerHandle | None = None
        self._written = 0
        self._spell: tuple[float, int] | None = None
        self._settling_until: float | None = None
        self.received = 0
        self.heard = self.spoke = time.monotonic()
        self.round_trip_s = 0.0
        """Of the path alone, as the owner measures it; what fills the path does not count as backlog."""
        self.throughput = Throughput()
        self.congestion = self._usual = sockets.congestion(sock)
        self._wish: Literal["system", "bbr"] = "system"
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._closed

    @property
    def backlog(self) -> int:
        """Bytes that the other end does not have yet."""
        return 0 if self._closed else sum(self._queued) + len(self._current) + sockets.unacknowledged(self._sock)

    @property
    def incoming(self) -> int:
        """Bytes of a packet that is on its way."""
        return self._reader.partial_bytes

    def received_at(self) -> float:
        """Monotonic time of the last byte that came to this machine, be it of a TLS record that is not whole yet."""
        known = self.facts()
        return self.heard if known is None else max(self.heard, time.monotonic() - known.since_data_s)

    def facts(self) -> sockets.TcpFacts | None:
        """What the kernel knows."""
        return None if self._closed else sockets.facts(self._sock)

    def room(self, urgency: Urgency, size: int = 0) -> bool:
        """Whether `size` bytes of this urgency should be given; `Ears.drained` tells when, if not.

        A packet of any size finds room where nothing waits.
        """
        if self._closed:
            return False
        bound = self.throughput.backlog_bytes(self.round_trip_s)
        # What is urgent waits only for its like: it overtakes the rest, and must not wait until that is gone.
        ahead = self.backlog if urgency is Urgency.REST else sum(self._queued[: urgency + 1])
        settling = urgency is Urgency.REST and self._settling_until is not None
        if not settling and (not ahead or ahead + size <= bound):
            return True
        self._refused, self._wanted = True, size
        self._limited = self._limited or urgency is Urgency.REST
        self._watch()
        return False

    def send(self, packet: bytes, urgency: Urgency) -> bool:
        """Queue a packet; False if it was not taken, as the connection is over or the queue at its hard limit."""
        if self._closed or self._queued[urgency] > MAX_BACKLOG_BYTES:
            return False
        self._queues[urgency].append(packet)
        self._queued[urgency] += len(packet)
        if not self._writing:
            self._writable()
        return not self._closed

    def use_congestion(self, wish: Literal["system", "bbr"]) -> None:
        """Let the kernel find the rate so, if it can; asked for once per change."""
        if wish == self._wish or self._closed or self._usual is None:
            return
        self._wish = wish
        sockets.use_congestion(self._sock, self._usual if wish == "system" else wish)
        self.congestion = sockets.congestion(self._sock)

    def settle(self, limit_s: float) -> None:
        """Take nothing bulky until all that was sent is there, so that a round trip can be measured; then go on."""
        if self._settling_until is None and not self._closed:
            self._settling_until = time.monotonic() + limit_s
            self._refused = True
            self._watch()

    def close(self) -> None:
        """End it without a word."""
        if self._closed:
            return
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._ears.lost(reason)

    def _writable(self) -> None:
        try:
            while self._current or self._next():
                taken = self._sock.send(self._current[:CHUNK_BYTES])
                self._current = self._current[taken:]
                self._written += taken
                self.spoke = time.monotonic()
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._await_writing(wanted=True)
        except ssl.SSLWantReadError:
            # The other end changes its keys (TLS 1.3); the next bytes that come let this go on.
            self._await_writing(wanted=False)
        except OSError as error:
            self._lose(f"the connection broke: {error.strerror or error}")
        else:
            self._await_writing(wanted=False)
        self._watch()

    def _next(self) -> bool:
        for urgency, queue in enumerate(self._queues):
            if queue:
                packet = queue.popleft()
                self._queued[urgency] -= len(packet)
                self._current = memoryview(packet)
                return True
        return False

    def _await_writing(self, *, wanted: bool) -> None:
        if wanted == self._writing:
            return
        self._writing = wanted
        if wanted:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            for _ in range(READS_PER_TURN):
                data = self._sock.recv(READ_BYTES)
                if not data:
                    self._lose("the server closed the connection")
                    return
                self.heard = time.monotonic()
                self.received += len(data)
                for packet in self._reader.feed(data):
                    self._ears.packet(packet)
                    if self._closed:
                        return
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except ProtocolError as error:
            self._lose(f"the server does not speak MQTT as agreed: {error}")
        except OSError as error:
            self._lose(f"the connection broke: {error.strerror or error}")
        else:
            # TLS may hold more than the socket shows.
            self._loop.call_soon(self._again)
        if self._current and not self._writing and not self._closed:
            self._writable()

    def _again(self) -> None:
        if not self._closed:
            self._readable()

    def _watch(self) -> None:
        """Measure while something is under way."""
        if self._tick is None and not self._closed and (self._refused or self.backlog):
            if self._spell is None:
                self._spell = (time.monotonic(), self._delivered())
            self._tick = self._loop.call_later(TICK_S, self._look)

    def _look(self) -> None:
        self._tick = None
        if self._closed:
            return
        try:
            self._measure()
        except OSError as error:
            self._lose(f"the connection broke: {error.strerror or error}")
            return
        backlog = self.backlog
        if self._settling_until is not None:
            if not backlog:
                self._ears.settled()
            if not backlog or time.monotonic() > self._settling_until:
                self._settling_until = None
        room = not backlog or backlog + self._wanted <= self.throughput.backlog_bytes(self.round_trip_s)
        if self._refused and room and self._settling_until is None:
            self._refused = False
            self._ears.drained()
        self._watch()

    def _measure(self) -> None:
        if self._spell is None:
            return
        began, before = self._spell
        now, idle = time.monotonic(), self.backlog == 0
        took = now - began
        if not idle and took < max(SAMPLE_S, 2 * self.round_trip_s):
            return
        # A TLS record that the kernel took only in part counts as held, and not yet as written.
        delivered = max(0, self._delivered() - before)
        self.throughput = self.throughput.with_sample(delivered, max(took, TICK_S), limited=self._limited)
        self._limited = self._refused
        self._spell = None if idle else (now, self._delivered())

    def _delivered(self) -> int:
        return self._written - sockets.unacknowledged(self._sock)
