"""Two devices meet over real sockets: proven to each other, bounded, turned away with a reason where they must be."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import struct
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ulid import ULID

from edge_runtime.carriers import meeting, reception
from edge_runtime.carriers.certificates import NeighbourError, contexts
from edge_runtime.carriers.interfaces import Interfaces
from edge_runtime.carriers.neighbours import _Meeting
from edge_runtime.carriers.port import MAX_FRAME_BYTES
from edge_runtime.carriers.reception import MAX_GUESTS, MAX_UNPROVEN_PER_HOST
from edge_runtime.identity import Identity
from schemas.neighbours import LENGTH
from tests.support.neighbours import ENDS, NOW, Host, Tale, authority, device
from tests.support.platform import until

PLATFORM = str(ULID())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Identity, Identity]:
    of = authority(tmp_path / "ca", PLATFORM)
    return device("ann", PLATFORM, of), device("bob", PLATFORM, of)


async def dial(host: Host, identity: Identity) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", host.neighbours.port, ssl=contexts(identity)[1])


async def ended(reader: asyncio.StreamReader) -> None:
    """The other side has closed; an alert is as good as an end."""
    async with asyncio.timeout(10):
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            while await reader.read(4096):
                pass


async def test_two_devices_meet_and_both_hear_everything_in_order(pair) -> None:
    async with Host(pair[1]) as bob:
        bob.words = [b"b%d" % n * 1000 for n in range(50)]
        async with Host(pair[0], bob.neighbours.port) as ann:
            ann.words = [b"a%d" % n * 1000 for n in range(50)]
            await until(lambda: ann.neighbours.meetings and bob.neighbours.meetings, "a meeting")
            (to_bob, heard_of_bob), (to_ann, heard_of_ann) = ann.tales[-1], bob.tales[-1]
            assert heard_of_bob.heard == bob.words
            assert heard_of_ann.heard == ann.words
            assert (to_bob.address, to_bob.key) == (pair[1].address, pair[1].public_key)
            assert (to_ann.address, to_ann.key) == (pair[0].address, pair[0].public_key)
            assert set(ann.neighbours.in_sight()) == {pair[1].address}
            assert set(bob.neighbours.in_sight()) == {pair[0].address}, "also who was not announced"
            assert ann.refusals == bob.refusals == {}
            assert ann.neighbours.status()["last_met"]["peer"] == str(pair[1].address)


async def test_news_bring_the_next_meeting_long_before_its_time(pair) -> None:
    async with Host(pair[1]) as bob, Host(pair[0], bob.neighbours.port, meet_s=3_600) as ann:
        await until(lambda: ann.neighbours.meetings, "a meeting")
        ann.words = [b"news"]
        ann.neighbours.wake()
        await until(lambda: bob.tales[-1][1].heard == [b"news"], "the news")


async def test_both_may_call_and_one_meeting_comes_of_it(pair) -> None:
    async with Host(pair[1]) as bob, Host(pair[0], bob.neighbours.port) as ann:
        to_ann = (("127.0.0.1", ann.neighbours.port),)
        bob.neighbours._contacts.sight("ann", to_ann, None, time.monotonic(), fixed=True)
        await until(lambda: ann.neighbours.meetings and bob.neighbours.meetings, "a meeting")
        for _ in range(3):
            ann.neighbours._contacts.news(float("-inf"))
            ann.neighbours.wake()
            bob.neighbours.wake()
            before = ann.neighbours.meetings
            await until(lambda before=before: ann.neighbours.meetings > before, "another one")
        assert set(ann.refusals) <= {"busy", "lost"}, ann.refusals
        assert set(bob.refusals) <= {"busy", "lost"}, bob.refusals


async def test_of_two_calls_at_once_the_same_one_counts_on_both_sides(pair) -> None:
    def call(dialler: Identity) -> _Meeting:
        return _Meeting(dialler.address, asyncio.create_task(asyncio.sleep(60)))

    for own, other in (pair, pair[::-1]):
        for first, second in (pair, pair[::-1]):
            device = Host(own).neighbours
            earlier, later = call(first), call(second)
            device._settle(other.address, earlier)
            if second is pair[0]:
                device._settle(other.address, later)
                assert earlier.task.cancelling()
                assert device._present[other.address] is later
            else:
                with pytest.raises(NeighbourError) as caught:
                    device._settle(other.address, later)
                assert caught.value.reason == "busy"
                assert not earlier.task.cancelling()
            for each in (earlier, later):
                each.task.cancel()
    # Whoever calls again has given its first call up, after a restart for one.
    device, earlier, later = Host(pair[0]).neighbours, call(pair[1]), call(pair[1])
    device._settle(pair[1].address, earlier)
    device._settle(pair[1].address, later)
    assert earlier.task.cancelling()
    later.task.cancel()


@pytest.mark.parametrize(
    ("who", "there", "here"),
    [
        ("of another authority", "unknown_ca", "refused_there"),
        ("of another platform", "wrong_platform", "lost"),
        ("expired", "expired", "lost"),
        ("of its own name", "own_name", "lost"),
        ("with another's name", None, None),
    ],
)
async def test_a_peer_that_is_none_is_turned_away_and_counted(tmp_path, pair, who, there, here) -> None:
    of = authority(tmp_path / "ca", PLATFORM)
    peers = {
        "of another authority": lambda: device("ann", PLATFORM, authority(tmp_path / "other", PLATFORM)).model_copy(
            update={"neighbours_ca": of.ca_pem}
        ),
        # One authority for two platforms: only the name tells them apart.
        "of another platform": lambda: device("ann", PLATFORM, authority(tmp_path / "ca", str(ULID()))),
        "expired": lambda: device("ann", PLATFORM, of, ends=NOW),
        "of its own name": lambda: device("ann", PLATFORM, of, named="bob"),
        "with another's name": lambda: device("ann", PLATFORM, of, named="eve"),
    }
    ann = peers[who]()
    async with Host(pair[1]) as bob:
        reader, writer = await dial(bob, ann)
        if there is None:
            # A certificate holds whatever the folder of its owner is called; the exchange compares the names.
            await until(lambda: bob.tales, "an exchange")
            assert bob.tales[0][0].address.device == "eve"
        else:
            await ended(reader)
            await until(lambda: bob.refusals, "a refusal")
            assert bob.refusals == {there: 1}
            assert not bob.tales, "nothing was said"
            assert not bob.neighbours.in_sight()
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()
    async with Host(pair[1]) as bob, Host(ann, bob.neighbours.port) as caller:
        if here is not None:
            await until(lambda: bob.refusals and caller.refusals, "a refusal on both sides")
            assert bob.refusals == {there: 1}
            assert set(caller.refusals) <= {here, "lost", "refused_there"}
            assert caller.neighbours.meetings == 0


async def test_time_is_the_device_s_own(pair) -> None:
    """All certificates here ended in 1970: what the system's clock says must not matter, what the device knows must."""
    async with Host(pair[1], now=ENDS) as bob:
        reader, writer = await dial(bob, pair[0])
        await ended(reader)
        assert bob.refusals == {"expired": 1}
        writer.close()
        bob.now = NOW
        reader, other = await dial(bob, pair[0])
        await until(lambda: bob.tales, "an exchange")
        other.close()
        for each in (writer, other):
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await each.wait_closed()


async def test_a_caller_without_tls_or_without_certificate_gets_nothing(pair) -> None:
    async with Host(pair[1]) as bob:
        port = bob.neighbours.port
        reader, plain = await asyncio.open_connection("127.0.0.1", port)
        plain.write(b"GET / HTTP/1.1\r\n\r\n")
        await ended(reader)
        plain.close()
        anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=anonymous)
        await ended(reader)
        await until(lambda: sum(bob.refusals.values()) == 2, "both to be refused")
        assert not bob.tales
        writer.close()
        for each in (plain, writer):
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await each.wait_closed()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (LENGTH.pack(MAX_FRAME_BYTES + 1), "oversized"),
        (LENGTH.pack(0), "oversized"),
        (LENGTH.pack(1) + b"!", "bad_exchange"),
        (LENGTH.pack(5) + b"half", "lost"),
        (b"", "lost"),
    ],
)
async def test_a_peer_that_breaks_the_rules_is_dropped(pair, words: bytes, reason: str) -> None:
    async with Host(pair[1]) as bob:
        reader, writer = await dial(bob, pair[0])
        writer.write(words)
        await writer.drain()
        await until(lambda: bob.tales, "an exchange")
        if reason == "lost":
            writer.transport.abort()
        else:
            await ended(reader)
        await until(lambda: bob.refusals, "a refusal")
        assert bob.refusals == {reason: 1}
        assert bob.neighbours.meetings == 0
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()


async def test_a_silent_peer_and_one_that_does_not_read_are_dropped(pair, monkeypatch) -> None:
    monkeypatch.setattr(meeting, "FRAME_S", 0.2)
    async with Host(pair[1]) as bob:
        reader, writer = await dial(bob, pair[0])
        await until(lambda: bob.refusals.get("timeout"), "the silent one to be dropped")
        await ended(reader)
        writer.close()
        bob.words = [bytes(60_000)] * 400
        _, deaf = await dial(bob, pair[0])
        await until(lambda: bob.refusals.get("slow"), "the deaf one to be dropped")
        deaf.transport.abort()
        for each in (writer, deaf):
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await each.wait_closed()


async def test_nobody_who_has_proven_himself_goes_for_another(pair, monkeypatch) -> None:
    monkeypatch.setattr(reception, "MAX_GUESTS", 1)
    async with Host(pair[1]) as bob:
        reader, writer = await dial(bob, pair[0])
        await until(lambda: bob.tales, "an exchange")
        _, late = await asyncio.open_connection("127.0.0.1", bob.neighbours.port)
        await until(lambda: bob.refusals.get("crowded"), "the next one to be turned away")
        assert not reader.at_eof()
        for each in (late, writer):
            each.close()
        await ended(reader)


async def test_who_begins_and_does_not_finish_keeps_nobody_out(pair, monkeypatch) -> None:
    monkeypatch.setattr(reception, "HANDSHAKE_S", 60.0)
    async with Host(pair[1]) as bob:
        loop = asyncio.get_running_loop()
        idle: list[socket.socket] = []
        # From many places on the LAN; all of 127/8 is this machine.
        bob.neighbours._interfaces = Interfaces(frozenset({ipaddress.IPv4Interface("127.0.0.1/8")}))
        for number in range(2 * MAX_GUESTS):
            one = socket.socket()
            one.setblocking(False)
            one.bind((f"127.0.1.{number + 1}", 0))
            await loop.sock_connect(one, ("127.0.0.1", bob.neighbours.port))
            idle.append(one)
        await until(lambda: bob.refusals.get("given_up") == MAX_GUESTS, "the oldest to be given up")
        reader, writer = await dial(bob, pair[0])
        await until(lambda: bob.tales, "an exchange with an honest peer, though the crowd is still there")
        writer.close()
        await ended(reader)
        for one in idle:
            one.close()


async def test_who_is_given_up_at_once_is_hung_up_on() -> None:
    """All wait before the first is accepted, so that the oldest goes before anything was done for it."""
    listener, refusals, callers = reception.listen(0), Counter[str](), []

    async def guest(_streams: reception.Streams) -> None:
        raise AssertionError("nobody proves anything here")

    door = reception.Reception(lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), lambda _: True, guest, refusals)
    for number in range(MAX_GUESTS + 1):
        caller = socket.create_connection(("127.0.0.1", listener.getsockname()[1]), 5, (f"127.0.1.{number + 1}", 0))
        caller.setblocking(False)
        callers.append(caller)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(door.run(listener, group))
        async with asyncio.timeout(5):
            assert await asyncio.get_running_loop().sock_recv(callers[0], 1) == b""
        assert refusals == {"given_up": 1}
        for caller in callers:
            caller.close()
        await until(lambda: refusals["lost"] == MAX_GUESTS, "the others to end")
        task.cancel()
    listener.close()


async def test_a_peer_that_brings_out_a_fault_of_ours_ends_no_meeting_but_its_own(pair, caplog) -> None:
    async with Host(pair[1]) as bob:
        faulty = Tale([])
        faulty.receive = lambda frame: frame.decode("utf-8-nobody-has-this")  # type: ignore[method-assign]
        bob.neighbours._home = replace(bob.neighbours._home, talk=lambda _: faulty)
        async with Host(pair[0], bob.neighbours.port) as ann:
            await until(lambda: bob.refusals.get("unexpected"), "the fault to be counted")
            assert bob.neighbours.port, "it still listens"
            assert ann.neighbours.port
    told = [record for record in caplog.records if record.message == "neighbour.unexpected"]
    assert told
    assert told[0].exc_info is not None, "with its stack"


async def test_a_connection_that_was_reset_can_be_let_go(pair) -> None:
    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Without lingering an end is a reset.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0, ssl=contexts(pair[1])[0])
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=contexts(pair[0])[1])
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert writer.is_closing()
        await meeting.close(writer)


async def test_one_place_may_begin_few_at_once(pair, monkeypatch) -> None:
    monkeypatch.setattr(reception, "HANDSHAKE_S", 60.0)
    async with Host(pair[1]) as bob:
        crowd = [await asyncio.open_connection("127.0.0.1", bob.neighbours.port) for _ in range(MAX_GUESTS)]
        await until(
            lambda: bob.refusals.get("too_many_at_once") == MAX_GUESTS - MAX_UNPROVEN_PER_HOST, "most to be refused"
        )
        for _, writer in crowd:
            writer.close()
        reader, writer = await until_open(bob, pair[0])
        await until(lambda: bob.tales, "an exchange with an honest peer")
        writer.close()
        await ended(reader)


async def until_open(host: Host, identity: Identity) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(15):
        while True:
            try:
                return await dial(host, identity)
            except (ssl.SSLError, ConnectionError):
                await asyncio.sleep(0.05)


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path, pair) -> None:
    of = authority(tmp_path / "ca", PLATFORM)
    async with Host(pair[1]) as bob, Host(device("ann", PLATFORM, of, ends=NOW), bob.neighbours.port) as ann:
        await until(lambda: bob.refusals.get("expired"), "the old certificate to be refused")
        ann.identity = device("ann", PLATFORM, of)
        ann.neighbours._contacts.get(f"127.0.0.1:{bob.neighbours.port}").due = 0.0
        ann.neighbours._stir.set()
        await until(lambda: ann.neighbours.meetings, "a meeting with the new one")
        assert bob.tales[-1][0].expires == datetime.fromtimestamp(ENDS, UTC)


async def test_a_taken_port_is_a_problem_that_says_what_to_do(pair) -> None:
    async with Host(pair[1]) as bob:
        ann = Host(pair[0])
        ann.neighbours._settings = ann.neighbours._settings.model_copy(update={"port": bob.neighbours.port})
        task = asyncio.create_task(ann.neighbours.run())
        problem = await until(lambda: ann.neighbours.problem, "the problem")
        assert "set another `port` in [neighbours]" in problem
        task.cancel()
        await asyncio.wait({task})


async def test_whoever_was_announced_is_not_in_sight_of_a_transport_that_ended(pair) -> None:
    async with Host(pair[0]) as ann:
        places = (("127.0.0.1", 1),)
        ann.neighbours._contacts.sight("bob._causeway", places, pair[1].address, 0.0, fixed=False)
        assert list(ann.neighbours.in_sight()) == [pair[1].address]
    assert list(ann.neighbours.in_sight()) == []
