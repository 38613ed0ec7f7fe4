"""The networks that other tests stand on: they connect, cut, slow down and lose as they say, and leave nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.netns import Machine, Net, Shape, unavailable
from tests.support.wire import Cable, Direction

reason = unavailable()
needs_namespaces = pytest.mark.skipif(reason is not None, reason=reason or "")

ECHO = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
    echo.bind(("0.0.0.0", 9000))
    if len(sys.argv) > 1:
        join = socket.inet_aton("224.0.0.251") + socket.inet_aton(sys.argv[1])
        echo.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, join)
    print("ready", flush=True)
    while True:
        data, sender = echo.recvfrom(2000)
        echo.sendto(data, sender)
"""
ASK = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
    ask.settimeout(float(sys.argv[2]))
    answered, began = 0, time.monotonic()
    for n in range(int(sys.argv[3])):
        ask.sendto(b"%d" % n, (sys.argv[1], 9000))
        try:
            ask.recvfrom(2000)
            answered += 1
        except TimeoutError:
            pass
    print(answered, time.monotonic() - began)
"""


def echo(machine: Machine, *arguments: str) -> None:
    process = machine.popen([sys.executable, "-c", ECHO, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()


def ask(machine: Machine, address: str, timeout_s: float = 5, count: int = 1) -> tuple[int, float]:
    done = machine.run([sys.executable, "-c", ASK, address, str(timeout_s), str(count)])
    answered, took = done.stdout.split()
    return int(answered), float(took)


@needs_namespaces
def test_machines_reach_each_other_over_a_switch_until_a_plug_is_pulled() -> None:
    with Net() as net:
        ship, harbour = net.machine("ship"), net.machine("harbour")
        lan = net.switch("lan")
        plug, other = lan.plug(ship), lan.plug(harbour)
        own = lan.plug(net.here)
        echo(harbour, other.address)
        assert ask(ship, other.address)[0] == 1
        assert ask(net.here, other.address)[0] == 1
        assert ask(ship, "224.0.0.251")[0] == 1, "multicast passes, which mDNS lives on"
        plug.cut()
        assert ask(ship, other.address, timeout_s=0.2)[0] == 0
        assert ask(net.here, other.address)[0] == 1
        plug.restore()
        assert ask(ship, other.address)[0] == 1
        assert own.address != plug.address
    assert not [path for path in Path("/run/netns").glob("cwt.*") if ".ship" in path.name]
    assert own.interface not in Path("/proc/net/dev").read_text()


@needs_namespaces
def test_a_cable_is_slow_and_far_and_can_be_made_better() -> None:
    with Net() as net:
        ship, harbour = net.machine("ship"), net.machine("harbour")
        radio = net.switch("radio")
        plug, other = radio.plug(ship, Shape(delay_ms=150)), radio.plug(harbour)
        echo(harbour)
        assert ask(ship, other.address)[1] > 0.3
        plug.shape(Shape())
        ask(ship, other.address)
        assert ask(ship, other.address)[1] < 0.3
        plug.shape(Shape(loss=1.0))
        assert ask(ship, other.address, timeout_s=0.2)[0] == 0
        assert plug.counts()["lost"] >= 1


def test_losses_are_the_same_for_the_same_seed() -> None:
    def losses(seed: int) -> list[bool]:
        cable, way = Cable(), Direction(lambda _: None)
        cable.reshape(Shape(loss=0.3, seed=seed))
        return [cable.accept(way, 100, 0.0) is None for _ in range(200)]

    assert losses(7) == losses(7) != losses(8)
    assert 30 <= sum(losses(7)) <= 90


def test_a_rate_spaces_frames_and_the_queue_is_bounded() -> None:
    cable, way = Cable(), Direction(lambda _: None)
    cable.reshape(Shape(rate_kbit=50, delay_ms=2_000, queue_bytes=3_000))
    assert cable.accept(way, 1_250, 0.0) == pytest.approx(2.2)
    way.queued = 1_250
    assert cable.accept(way, 1_250, 0.0) == pytest.approx(2.4)
    way.queued = 2_500
    assert cable.accept(way, 1_250, 0.0) is None
    assert cable.full == 1
