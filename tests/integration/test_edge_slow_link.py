"""A device behind 50 kbit/s, behind 2 s of round trip and 30 % of loss, and behind all of it: what is urgent arrives.

In network namespaces, with the real platform at one end and the real agent at the other.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from causeway.platform.init import InitOptions
from edge_runtime.sdk import EdgeDevice
from schemas.registry import EventReport, Twin
from tests.integration.test_depot_pieces import register
from tests.support.courier_world import letters, post
from tests.support.edge import EdgeProcess, show
from tests.support.netns import Net, Port, Shape, unavailable
from tests.support.platform import LivePlatform, eventually

WHY_NOT = unavailable()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

SLOW = Shape(rate_kbit=50, delay_ms=50, seed=11)
FAR_AND_LOSSY = Shape(delay_ms=1_000, loss=0.3, seed=12)
ALL_AT_ONCE = Shape(rate_kbit=50, delay_ms=1_000, loss=0.3, seed=13)
URGENT_S = 10.0
"""Typically 2 s on the slow link; a busy machine gets room."""
PIECE_S = 15.0
"""Beside slices of pieces, of 3 s each."""
URGENT_LOSSY_S = 60.0
"""Of a row of lost packets TCP repeats the last after 8 s again and again."""
LONG = bool(os.environ.get("LONG_TESTS"))
URGENT_AT_WORST_S = 240.0
"""Beside bulk; half of them take less than 15 s, one in a hundred minutes."""
URGENT = 8
BULK = 400
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


@dataclass
class Ship:
    live: LivePlatform
    device: EdgeProcess
    port: Port
    net: Net

    def start(self, *module: str) -> None:
        """Run an agent aboard: `causeway-edge run`, or another module."""
        if not module:
            self.device.start()
            return
        with (self.device.folder / "log").open("ab") as log:
            command = [*self.device.prefix, sys.executable, "-m", *module]
            self.device.process = self.net.here.popen(command, stdout=log, stderr=log)

    def connected(self) -> None:
        eventually(
            lambda: self.device.status().get("connected") and self.device.status()["pid"] == self.device.process.pid,
            "the agent to be connected",
            60,
        )

    def mark(self, lane: str) -> int:
        rows = self.device.rows(f"SELECT mark FROM lanes WHERE lane = '{lane}'")
        return rows[0][0] if rows else 0

    def urgent_s(self, host: EdgeDevice, limit_s: float) -> float:
        """Seconds from a control letter to its receipt on the device's disk."""
        before, began = self.mark("control"), time.monotonic()
        host.send("event", EventReport(name="door.open", message="somebody came", severity="high"))
        eventually(lambda: self.mark("control") > before, "the receipt of a control letter", limit_s)
        return time.monotonic() - began

    def down_s(self, revision: int, limit_s: float) -> float:
        """Seconds from a letter in the mailbox to the device's disk."""
        began = time.monotonic()
        [letter_id] = post(self.live, self.device, "config", Twin(heartbeat_s=5), slot="-", revision=revision)
        query = f"SELECT 1 FROM letters WHERE id = '{letter_id}'"
        eventually(lambda: self.device.rows(query, "inbox.db"), "a letter down", limit_s)
        return time.monotonic() - began

    def figures(self) -> dict[str, float]:
        return self.device.status()["figures"]


def record(figures: dict[str, object]) -> None:
    """Shown if the test fails."""
    logging.getLogger(__name__).info("%s", {name: said for name, said in figures.items() if name != "explanation"})


@pytest.fixture
def ship(tmp_path: Path) -> Iterator[Ship]:
    with ExitStack() as stack:
        net = stack.enter_context(Net())
        harbour = net.switch("harbour")
        office = harbour.plug(net.here)
        live = LivePlatform.start(tmp_path / "state", InitOptions(host=office.address, free_ports=True))
        stack.callback(live.stop)
        live.start_services("depot", "registry", "courier")
        device = EdgeProcess.make(tmp_path / "device", "ship-1")
        settings = device.folder / "edge.toml"
        settings.write_text(settings.read_text().replace("heartbeat_s = 0.5", "heartbeat_s = 2"))
        device.admit(live)
        machine = net.machine("ship")
        port = harbour.plug(machine, Shape())
        device.prefix = machine.prefix
        yield Ship(live, device, port, net)
        if device.process is not None:
            device.process.terminate()
            device.process.wait(20)


def test_on_a_slow_link_what_is_urgent_passes_what_is_bulky_both_ways_and_the_connection_holds(ship, tmp_path) -> None:
    data = random.Random(5).randbytes(150_000)
    artifact = register(ship.live, data)
    ship.port.shape(SLOW)
    with EdgeDevice(ship.device.folder / "edge.toml") as host:
        for number in range(300):
            host.send("sample", {"number": number, "picture": "x" * 8_000})
        got = tmp_path / "artifact"
        toml = str(ship.device.folder / "edge.toml")
        ship.start("tests.support.fetching_agent", toml, artifact.model_dump_json(), str(got))
        ship.connected()
        began = time.monotonic()
        eventually(lambda: ship.figures()["up_bytes_per_s"], "the rate to be measured")
        urgent, down = [], []
        for turn in range(3):
            urgent.append(ship.urgent_s(host, PIECE_S))
            down.append(ship.down_s(1_000 + turn, PIECE_S))
        eventually(lambda: '"fetched"' in ship.device.log(), "the artifact", 60)
        eventually(lambda: time.monotonic() > began + 30, "half a minute under load", 40)
        urgent += [ship.urgent_s(host, URGENT_S) for _ in range(3)]
        figures = ship.figures()
        waiting = ship.device.status()["outbox"]["waiting"]
    record(figures | {"urgent_s": urgent, "down_s": down})
    assert got.read_bytes() == data
    assert '"unsolicited": 0' in ship.device.log(), "a piece was asked for twice"
    assert waiting > 100, "there was bulk all the time"
    assert ship.mark("normal") >= 4, "and it moved"
    assert figures["letters_sent_again"] == 0
    assert figures["up_bytes_per_s"] < 15_000
    assert figures["connections"] == 1
    assert "link.down" not in ship.device.log()
    network = show(ship.live, ship.device.address)["heartbeat"]["network"]
    assert network["quality"] in {"fair", "poor"}
    assert network["loss_ratio"] is not None


def test_a_link_that_turns_far_and_lossy_is_kept_and_letters_arrive(ship) -> None:
    ship.start()
    ship.connected()
    with EdgeDevice(ship.device.folder / "edge.toml") as host:
        for number in range(500):
            host.send("sample", {"number": number, "picture": "x" * 2_000})
        ship.port.shape(FAR_AND_LOSSY)
        urgent = [ship.urgent_s(host, URGENT_LOSSY_S) for _ in range(2)]
        figures = ship.figures()
    record(figures | {"urgent_s": urgent})
    assert figures["connections"] == 1
    assert "link.down" not in ship.device.log()
    assert figures["letters_sent_again"] == 0
    ship.port.shape(Shape())
    eventually(lambda: ship.mark("normal") == 500, "everything, once the link is good again", 90)
    assert ship.figures()["connections"] == 1


@pytest.mark.skipif(not LONG, reason="takes minutes; LONG_TESTS=1 runs it")
@pytest.mark.timeout(1_200)
def test_slow_far_and_lossy_at_once_urgent_letters_pass_and_everything_arrives_in_order(ship, tmp_path) -> None:
    data = random.Random(6).randbytes(300_000)
    artifact = register(ship.live, data)
    # Most devices' kernels do not come with BBR as their way; the agent has to ask for it.
    ship.port.machine.run(["sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno"])
    ship.port.shape(SLOW)
    with EdgeDevice(ship.device.folder / "edge.toml") as host:
        for number in range(BULK):
            host.send("sample", {"number": number, "picture": "x" * 4_000})
        got = tmp_path / "artifact"
        toml = str(ship.device.folder / "edge.toml")
        ship.start("tests.support.fetching_agent", toml, artifact.model_dump_json(), str(got))
        ship.connected()
        ship.port.shape(ALL_AT_ONCE)
        urgent = [ship.urgent_s(host, URGENT_AT_WORST_S) for _ in range(URGENT)]
        moved = ship.mark("normal")
        figures, log = ship.figures(), ship.device.log()
    record(figures | {"urgent_s": urgent, "moved": moved})
    assert 0 < moved < BULK, "there was bulk all the time, it moved, and control letters passed it"
    assert '"fetched"' not in log, "and downwards too"
    assert figures["connections"] <= 2, "one may be given up as dead once in a while; over and over again is a loop"
    assert figures["explanation"]["decisions"]["congestion"]["value"] == "bbr"
    assert figures["congestion"] == ("bbr" if "bbr" in AVAILABLE.read_text().split() else "reno")
    ship.port.shape(Shape())
    eventually(lambda: ship.mark("normal") == BULK, "everything, once the link is good again", 90)
    eventually(lambda: '"fetched"' in ship.device.log(), "the artifact", 90)
    assert got.read_bytes() == data
    numbers = [int(letter.rsplit(":", 1)[1]) for letter in letters(ship.live, "sample")]
    assert numbers == list(range(1, BULK + 1)), "each once and in order"
