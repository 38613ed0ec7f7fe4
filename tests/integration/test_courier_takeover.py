"""Two couriers: one is active, one stands by, and IN never holds a letter twice."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from schemas.registry import Twin
from schemas.topics import in_subject
from services.kit.bus import Bus
from tests.support.courier_world import ids, letters, post, start_standby
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol, in_bus

STANDBY = "courier-2"
BOUND_S = 5.0
"""From the end of a courier to the first letter that its standby stores."""


@pytest.fixture
def device(live: LivePlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawDevice]:
    """A connected device; an active courier and a standby run."""
    cam = RawDevice(live, "cam-1")
    enrol(live, cam)
    live.start_service("courier")
    start_standby(live, monkeypatch, STANDBY)
    cam.connect()
    cam.greet()
    yield cam
    cam.close()


def standby_active(live: LivePlatform) -> bool:
    return "causeway_courier_active 1.0" in live.metrics(STANDBY)


def last_stored(device: RawDevice) -> float:
    """When IN took the device's newest letter, by the server's own word."""

    async def look(bus: Bus) -> datetime | None:
        return (await bus.js.get_last_msg("IN", in_subject("event", device.address))).time

    time_ = in_bus(device.live, "courier", look)
    assert time_ is not None
    return time_.timestamp()


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
    heard_s, stored_s = time.time() - begun, last_stored(device) - begun
    with capsys.disabled():
        sys.stdout.write(f"\ncourier {what}: new letter stored after {stored_s:.2f} s, receipt after {heard_s:.2f} s\n")
    assert 0 < stored_s < BOUND_S


def test_a_standby_takes_over_from_a_killed_courier(
    live: LivePlatform, device: RawDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not standby_active(live)
    for _ in range(200):
        device.send()
    [early] = post(live, device, "config", Twin(heartbeat_s=10), slot="-")
    begun = time.time()
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
    begun = time.time()
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
