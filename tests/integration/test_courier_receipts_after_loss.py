"""A receipt promises no more than IN holds, also after nats-server lost what it had acknowledged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.courier_world import ids, letters
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol


@pytest.fixture
def cam(live: LivePlatform) -> Iterator[RawDevice]:
    """A connected device; the courier runs."""
    device = RawDevice(live, "cam-1")
    enrol(live, device)
    live.start_service("courier")
    device.connect()
    device.greet()
    yield device
    device.close()


def test_a_quiet_device_learns_that_the_server_lost_its_letters(live: LivePlatform, cam: RawDevice) -> None:
    for _ in range(10):
        cam.send()
    cam.settle()
    backup = live.state.root / "backup"
    live.kill("nats-server")
    shutil.copytree(live.state.nats_data, backup)
    live.start_bus()
    for _ in range(10):
        cam.send()
    cam.settle()

    live.kill("nats-server")
    shutil.rmtree(live.state.nats_data)
    shutil.copytree(backup, live.state.nats_data)
    live.start_bus()
    # Nobody sends a letter that could show the courier what IN holds; one hello must be enough.
    first = cam.greet()
    assert first.marks == {"normal": 10}
    cam.settle()
    eventually(lambda: letters(live) == ids(cam, "normal", 20), "the lost letters to be stored again")
