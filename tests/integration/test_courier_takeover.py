"""Two couriers: one is active, one stands by, and IN never holds a letter twice."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from schemas.registry import Twin
from tests.support.courier_world import ids, letters, post
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


def first_receipt(device: RawDevice, begun: float, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Send a letter as the runtime does until somebody receipts it, and say how long nobody did."""
    sequence, again = device.send(), [0.0]

    def receipted() -> bool:
        if time.monotonic() >= again[0]:
            device.hello()
            device.send_again()
            again[0] = time.monotonic() + 0.2
        return device.marks().get("normal", 0) >= sequence

    eventually(receipted, "a receipt by the standby")
    took_s = time.monotonic() - begun
    with capsys.disabled():
        sys.stdout.write(f"\ncourier {what}: first receipt of a new letter after {took_s:.2f} s\n")
    # 5 s is the aim; a machine that runs other tests beside has twice that.
    assert took_s < 10


def test_a_standby_takes_over_from_a_killed_courier(
    live: LivePlatform, device: RawDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not standby_active(live)
    for _ in range(200):
        device.send()
    [early] = post(live, device, "config", Twin(heartbeat_s=10), slot="-")
    begun = time.monotonic()
    live.kill("courier")
    first_receipt(device, begun, "killed", capsys)
    assert standby_active(live)
    for _ in range(199):
        device.send()
    device.settle()
    assert letters(live) == ids(device, "normal", 400)
    eventually(lambda: early in {letter.id for letter in device.down("config")}, "the letter in the mailbox")


def test_a_courier_that_slept_finds_its_chain_broken_and_ends(
    live: LivePlatform, device: RawDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(100):
        device.send()
    device.settle()
    sleeper = live.processes["courier"]
    begun = time.monotonic()
    sleeper.send_signal(signal.SIGSTOP)
    first_receipt(device, begun, "frozen", capsys)
    for _ in range(99):
        device.send()
    assert standby_active(live)
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
