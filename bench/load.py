"""Many devices in one process: `python -m bench.load` takes a plan on standard input and sends heartbeats as told.

Every message is different: id, time, uptime and load are patched into a prepared packet. It sends no more than `window`
messages ahead of what the receiver has counted, so that every contender is measured at the pace that it can keep.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ulid import ULID

from bench.counter import Counter
from bench.mqtt import accepted, connect_packet, open_device, publish_head, subscribe_packet
from schemas.ids import Address
from schemas.letters import write_state
from schemas.registry import Heartbeat, Network, OutboxState
from schemas.topics import Channel, Topic, device_filters

_OPEN_AT_ONCE = 50
_PAUSE_S = 0.0005
_STALL_S = 30.0
_TIME = "2026-01-01T00:00:00.000001Z"
_UPTIME = "1000000.5"
FIRST_UPTIME_S = 1_000_000
_LOAD = "0.515625"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one generator shall do.

    Attributes:
        devices: fleet, device, client id and password of each connection.
        burst: messages per write and connection.
        window: messages that may be on their way.
        counter: file of the count of those that arrived.
    """

    host: str
    port: int
    counter: str
    window: int
    burst: int
    devices: list[tuple[str, str, str, str]]

    def write(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


def heartbeat(address: Address) -> bytes:
    """A heartbeat as an edge agent sends it, with the values that are patched later."""
    beat = Heartbeat(
        session=str(ULID()),
        uptime_s=float(_UPTIME),
        load=float(_LOAD),
        cpu_ratio=0.25,
        ram_used_mb=1_700,
        ram_free_mb=2_300,
        disk_free_mb=21_000,
        battery_percent=87.0,
        charging=True,
        discharging=False,
        temp_c=41.5,
        network=Network(kind="wifi", rtt_ms=12.5, loss_ratio=0.0, quality="good"),
        samples={"digits": 180},
        outbox=OutboxState(letters=0, bytes=0, dropped=0),
        trust_age_s=3_600.0,
    )
    time_of = datetime.fromisoformat(_TIME)
    return write_state("heartbeat", beat, event_id=str(ULID()), address=address, time=time_of)


class Beats:
    """The packets of one device: `burst` copies of its heartbeat, made different each time that they are taken."""

    def __init__(self, address: Address, burst: int) -> None:
        body = heartbeat(address)
        packet = publish_head(Topic(address, Channel.STATE, "heartbeat").mqtt, len(body)) + body
        self._buffer = bytearray(packet * burst)
        self._size = len(packet)
        self._id = packet.index(b'"id":"') + 6 + 16  # the last ten characters; digits are valid in a ULID
        self._time = packet.index(_TIME.encode())
        self._uptime = packet.index(_UPTIME.encode())
        self._load = packet.index(_LOAD.encode())
        self.count = 0  # of messages taken; the last one says uptime FIRST_UPTIME_S + count

    def take(self, stamp: bytes) -> memoryview:
        """The next burst; valid until the next call. `stamp` is a time without its fraction, 20 bytes."""
        buffer = self._buffer
        for start in range(0, len(buffer), self._size):
            self.count += 1
            n = self.count
            buffer[start + self._id : start + self._id + 10] = b"%010d" % n
            buffer[start + self._time : start + self._time + 27] = b"%b%06dZ" % (stamp, n % 1_000_000)
            buffer[start + self._uptime : start + self._uptime + 9] = b"%d.5" % (FIRST_UPTIME_S + n)
            buffer[start + self._load : start + self._load + 8] = b"0.%06d" % (n % 999_983)
        return memoryview(buffer)


class Fleet:
    """The connections, and what each could not write yet."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.counter = Counter(Path(plan.counter))
        self._links: list[tuple[socket.socket, Beats]] = []
        self._unsent: dict[socket.socket, memoryview] = {}
        self._poll = select.epoll()
        self._by_fd: dict[int, socket.socket] = {}
        self.sent = 0

    def connect(self) -> None:
        """Open every connection, some at a time, with its subscriptions."""
        for start in range(0, len(self._plan.devices), _OPEN_AT_ONCE):
            batch = self._plan.devices[start : start + _OPEN_AT_ONCE]
            links = [open_device(self._plan.host, self._plan.port) for _ in batch]
            for link, (_, _, client_id, password) in zip(links, batch, strict=True):
                link.sendall(connect_packet(client_id, password))
            for link, (fleet, device, _, _) in zip(links, batch, strict=True):
                accepted(link, device)
                address = Address(fleet, device)
                link.sendall(subscribe_packet(*device_filters(address)))
                link.setblocking(False)
                self._poll.register(link, select.EPOLLIN)
                self._by_fd[link.fileno()] = link
                self._links.append((link, Beats(address, self._plan.burst)))

    def rounds(self, seconds: float, limit: int) -> dict[str, Any]:
        """Send until `seconds` are over or `limit` messages are sent; the last write is always finished."""
        first = time.monotonic()
        deadline, last, begun = first + seconds, first, self.sent
        burst = self._plan.burst
        while time.monotonic() < deadline and self.sent - begun < limit:
            stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.").encode()
            for place, (link, beats) in enumerate(self._links):
                if place % _OPEN_AT_ONCE == 0:
                    self._wait_for_room()
                    self._look()
                    if time.monotonic() >= deadline:
                        break
                if link not in self._unsent:
                    self._write(link, beats.take(stamp))
                    self.sent += burst
        stalled = time.monotonic() + _STALL_S
        while self._unsent:
            self._look(0.05)
            if time.monotonic() > stalled:
                raise TimeoutError(f"{len(self._unsent)} connections took nothing for {_STALL_S:.0f} s")
        last = time.monotonic()
        counts = {
            device: beats.count for (_, device, _, _), (_, beats) in zip(self._plan.devices, self._links, strict=True)
        }
        return {"first": first, "last": last, "sent": self.sent - begun, "counts": counts}

    def _wait_for_room(self) -> None:
        stalled = time.monotonic() + _STALL_S
        while self.sent - self.counter.value > self._plan.window:
            time.sleep(_PAUSE_S)
            if time.monotonic() > stalled:
                raise TimeoutError(
                    f"{self.sent} sent, {self.counter.value} counted, and nothing moved for {_STALL_S:.0f} s"
                )

    def _write(self, link: socket.socket, data: memoryview) -> None:
        try:
            done = link.send(data)
        except BlockingIOError:
            done = 0
        if done < len(data):
            self._unsent[link] = data[done:]
            self._poll.modify(link, select.EPOLLIN | select.EPOLLOUT)

    def _look(self, timeout_s: float = 0.0) -> None:
        for fd, events in self._poll.poll(timeout_s):
            link = self._by_fd[fd]
            if events & select.EPOLLOUT:
                rest = self._unsent.pop(link)
                self._poll.modify(link, select.EPOLLIN)
                self._write(link, rest)
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and not link.recv(4096):
                raise ConnectionError("the server closed a device's connection; see its log")


def main() -> None:
    """Connect, say so, then obey lines of JSON with `seconds` and `limit` until the input ends."""
    fields = json.loads(sys.stdin.readline())
    fields["devices"] = [tuple(device) for device in fields["devices"]]
    fleet = Fleet(Plan(**fields))
    begun = time.monotonic()
    fleet.connect()
    print(json.dumps({"connected_s": round(time.monotonic() - begun, 2)}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(fleet.rounds(order["seconds"], order["limit"])), flush=True)


if __name__ == "__main__":
    main()
