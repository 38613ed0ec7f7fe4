"""One connection over a real TCP socket whose other end reads when the test says so."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from edge_runtime.link import connection, mqtt, sockets
from edge_runtime.link.connection import Connection, Ears, Urgency
from edge_runtime.link.mqtt import Packet, PacketReader
from tests.support.platform import until

ROW = b"x" * 8_000


class Pair:
    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            self.near = socket.create_connection(server.getsockname())
            self.far, _ = server.accept()
        self.near.setblocking(False)
        self.far.setblocking(False)
        sockets.tune(self.near)
        self.reader = PacketReader()
        self.packets: list[Packet] = []
        self.lost: list[str] = []
        self.drained = self.settled = 0
        self.connection = Connection(self.near, Ears(self.packets.append, self.lost.append, self._drain, self._settle))

    def _drain(self) -> None:
        self.drained += 1

    def _settle(self) -> None:
        self.settled += 1

    def fill(self) -> int:
        """Give what is bulky for as long as there is room."""
        count = 0
        while self.connection.room(Urgency.REST, len(ROW)):
            assert self.connection.send(mqtt.publish("rest", ROW), Urgency.REST)
            count += 1
        return count

    async def read(self, count: int) -> list[str]:
        """Topics of the next packets at the far end."""
        found: list[str] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                data = await asyncio.get_running_loop().sock_recv(self.far, 65_536)
                packets = self.reader.feed(data)
                found += ["ping" if p.type == 0xC0 else mqtt.read_publish(p)[0] for p in packets]
        return found

    def close(self) -> None:
        self.connection.close()
        self.far.close()


@pytest.fixture
async def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


async def test_what_is_urgent_overtakes_what_waits_here(pair) -> None:
    # The far end does not read, so that the kernel's buffers fill and the rest stays here.
    for _ in range(64):
        pair.connection.send(mqtt.publish("rest", ROW), Urgency.REST)
    pair.connection.send(mqtt.publish("control", b""), Urgency.CONTROL)
    pair.connection.send(mqtt.PINGREQ, Urgency.SIGNAL)
    topics = await pair.read(66)
    assert topics.index("ping") < topics.index("control") < 60
    assert topics.count("rest") == 64


async def test_the_backlog_is_bounded_and_a_control_letter_finds_room_all_the_same(pair) -> None:
    given = pair.fill()
    assert given * len(ROW) <= pair.connection.throughput.backlog_bytes(0.0) + len(ROW)
    assert not pair.connection.room(Urgency.REST, len(ROW))
    assert pair.connection.room(Urgency.CONTROL)
    assert pair.connection.room(Urgency.SIGNAL)
    await pair.read(given)
    await until(lambda: pair.drained, "the buffers to be empty")
    assert pair.connection.room(Urgency.REST, len(ROW))


async def test_a_packet_of_any_size_finds_room_where_nothing_waits(pair) -> None:
    assert pair.connection.room(Urgency.REST, 10**6)
    pair.connection.send(mqtt.publish("rest", ROW), Urgency.REST)
    if pair.connection.backlog:
        assert not pair.connection.room(Urgency.REST, 10**6)


async def test_the_rate_is_learned_from_what_arrives(pair, monkeypatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: now))
    async with asyncio.timeout(20):
        for _ in range(30):
            pair.fill()
            left = 10_000
            while left:
                left -= len(await asyncio.get_running_loop().sock_recv(pair.far, left))
            now += 0.1
            pair.connection._look()
    rate = pair.connection.throughput.bytes_per_s
    assert rate is not None
    assert 50_000 < rate < 200_000, "100 kB/s"


async def test_settling_holds_what_is_bulky_until_all_is_there(pair) -> None:
    given = pair.fill()
    pair.connection.settle(10.0)
    await pair.read(given)
    assert not pair.connection.room(Urgency.REST) or pair.settled
    await until(lambda: pair.settled, "the peer to have everything")
    await until(lambda: pair.connection.room(Urgency.REST), "room")


async def test_what_comes_in_is_cut_into_packets_and_its_end_is_told_once(pair) -> None:
    data = mqtt.publish("a", b"1") + mqtt.publish("b", b"2")
    pair.far.send(data[:5])
    await until(lambda: pair.connection.incoming, "the beginning")
    pair.far.send(data[5:])
    await until(lambda: len(pair.packets) == 2, "both packets")
    assert pair.connection.received == len(data)
    pair.far.close()
    await until(lambda: pair.lost, "the loss")
    assert pair.connection.closed
    assert not pair.connection.send(mqtt.PINGREQ, Urgency.SIGNAL)
    assert not pair.connection.room(Urgency.SIGNAL)
    assert len(pair.lost) == 1


async def test_a_server_that_speaks_something_else_is_left(pair) -> None:
    pair.far.send(b"\x30\xff\xff\xff\xff\xff")
    await until(lambda: pair.lost, "the loss")
    assert "does not speak MQTT" in pair.lost[0]


async def test_the_kernel_tells_what_it_holds(pair) -> None:
    facts = pair.connection.facts()
    assert facts is not None
    assert facts.since_ack_s < 10
    pair.connection.send(mqtt.publish("t", b"x" * 1_000), Urgency.SIGNAL)
    await until(lambda: pair.connection.facts().segments >= 1, "a segment")
    await pair.read(1)
    await until(lambda: pair.connection.backlog == 0, "everything to be sent")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel is not asked")
async def test_the_kernel_finds_the_rate_as_wished_and_then_as_before(pair, monkeypatch) -> None:
    before = sockets.congestion(pair.near)
    assert pair.connection.congestion == before
    asked = []

    def use(connection: socket.socket, name: str) -> None:
        asked.append(name)
        # In the place of BBR one that every kernel has and allows.
        sockets_use(connection, "reno" if len(asked) == 1 else name)

    sockets_use = sockets.use_congestion
    monkeypatch.setattr(sockets, "use_congestion", use)
    for _ in range(2):
        pair.connection.use_congestion("bbr")
        assert pair.connection.congestion == sockets.congestion(pair.near) == "reno"
    for _ in range(2):
        pair.connection.use_congestion("system")
        assert pair.connection.congestion == sockets.congestion(pair.near) == before
    assert asked == ["bbr", before], "once per change"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel is not asked")
async def test_a_kernel_without_the_wished_way_goes_on_as_before(pair) -> None:
    before = sockets.congestion(pair.near)
    sockets.use_congestion(pair.near, "no-such-way")
    assert sockets.congestion(pair.near) == before
