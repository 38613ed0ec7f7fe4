"""Two couriers: one is active, one stands by, and IN never holds a letter twice."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator

import pytest

from tests.support.courier_world import ids, letters
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol

STANDBY = "courier-2"


@pytest.fixture
def device(live: LivePlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawDevice]:
    """A connected device; an active courier and a standby run."""
    cam = RawDevice(live, "cam-1")
    enrol(live, cam)
    live.start_service("courier")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("CAUSEWAY_HTTP__HEALTH_PORTS", json.dumps({"courier": port}))
    live.settings.http.health_ports[STANDBY] = port
    live._spawn(STANDBY, [sys.executable, "-m", "services.courier", "--state", str(live.state.root)])
    eventually(lambda: live._ready(STANDBY, port), "the standby to be ready")
    cam.connect()
    cam.greet()
    yield cam
    cam.close()


def standby_active(live: LivePlatform) -> bool:
    return "causeway_courier_active 1.0" in live.metrics(STANDBY)


def test_a_standby_takes_over_from_a_killed_courier(live: LivePlatform, device: RawDevice) -> None:
    assert not standby_active(live)
    for _ in range(200):
        device.send()
    live.kill("courier")
    eventually(lambda: standby_active(live), "the standby to take over")
    for _ in range(200):
        device.send()
    device.settle()
    assert letters(live) == ids(device, "normal", 400)


def test_a_courier_that_slept_finds_its_chain_broken_and_ends(live: LivePlatform, device: RawDevice) -> None:
    for _ in range(100):
        device.send()
    device.settle()
    sleeper = live.processes["courier"]
    sleeper.send_signal(signal.SIGSTOP)
    for _ in range(100):
        device.send()
    eventually(lambda: standby_active(live), "the standby to take over")
    sleeper.send_signal(signal.SIGCONT)
    for _ in range(100):
        device.send()
    device.settle()
    assert sleeper.wait(20) == 1
    assert "another courier holds it" in live.log("courier")
    assert letters(live) == ids(device, "normal", 300)


def test_a_courier_that_is_told_to_stop_hands_over_at_once(live: LivePlatform, device: RawDevice) -> None:
    device.send()
    device.settle()
    live.processes["courier"].terminate()
    assert live.processes["courier"].wait(20) == 0
    # Well before the lease would have run out.
    eventually(lambda: standby_active(live), "the standby to take over", 2.5)
    device.send()
    device.settle()
    assert letters(live) == ids(device, "normal", 2)
