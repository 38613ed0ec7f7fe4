"""A device whose outbox overflows or whose disk fails, with the real services at the other end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.sdk import EdgeDevice
from tests.integration.test_edge_letters import letters_in, numbers_in
from tests.support.edge import EdgeProcess, show
from tests.support.outbox import fill_disk, remount, small_disk
from tests.support.platform import LivePlatform, eventually

LIMITS = "[outbox]\nmax_letters = 100\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with small_disk(tmp_path / "disk", 8_192) as folder:
        yield folder


def test_what_a_full_outbox_gave_up_is_told_by_name(platform: LivePlatform, tmp_path: Path) -> None:
    edge = EdgeProcess.make(tmp_path / "device", "cam-1", LIMITS).admit(platform)
    with EdgeDevice(edge.folder / "edge.toml") as device:
        for number in range(10):
            device.send("sample", {"number": number, "of": "door"}, latest="door")
        ids = device.send_many("sample", [{"number": number} for number in range(10, 120)])
        device.start_heartbeat()
        losses = eventually(lambda: show(platform, edge.address)["losses"], "the losses")
        arrived = eventually(lambda: numbers_in(platform)[-1:] == [119] and numbers_in(platform), "the letters")
    assert losses["letters"]["superseded"] == 9
    evicted = losses["letters"]["evicted"]
    assert arrived == list(range(9 + evicted, 120)), "without a gap but for what is in the ledger"
    (report,) = letters_in(platform, "losses")
    named = [name.id for loss in report.data.losses if loss.reason == "evicted" for name in loss.names]
    assert named[1:] == ids[: evicted - 1]
    series = f'causeway_letters_given_up_total{{arrived="no",reason="evicted"}} {evicted}.0'
    assert series in platform.metrics("registry")
    view = eventually(lambda: show(platform, edge.address)["heartbeat"], "a heartbeat")
    assert (view["outbox"]["dropped"], view["outbox"]["storage"]) == (evicted, "disk")


def test_a_device_on_a_read_only_disk_goes_on_from_memory(platform: LivePlatform, disk: Path) -> None:
    edge = EdgeProcess.make(disk / "device", "cam-1").admit(platform)
    with EdgeDevice(edge.folder / "edge.toml") as device:
        device.send("sample", {"number": 1})
    remount(disk, "ro")
    with EdgeDevice(edge.folder / "edge.toml") as device:
        device.send("sample", {"number": 2})
        assert device.storage == "memory"
        device.start_heartbeat()
        device.send("sample", {"number": 3})
        eventually(lambda: numbers_in(platform) == [1, 2, 3], "the letters from file and memory")

        def beat() -> bool:
            heartbeat = show(platform, edge.address)["heartbeat"]
            return heartbeat is not None and heartbeat["outbox"] == {
                "letters": 0,
                "bytes": 0,
                "dropped": 0,
                "storage": "memory",
            }

        eventually(beat, "a heartbeat that tells of it")
        remount(disk, "rw")

        def back() -> bool:
            device.send("sample", {"number": 4}, latest="probe")
            return device.storage == "disk"

        eventually(back, "the disk to be used again", 40)
    rows = edge.rows("SELECT data FROM letters WHERE kind = 'sample' AND latest IS NULL AND state = 'receipted'")
    assert sorted(json.loads(data)["number"] for (data,) in rows) == [1, 2, 3]


def test_an_agent_starts_on_a_full_disk_and_its_letters_arrive(platform: LivePlatform, disk: Path) -> None:
    edge = EdgeProcess.make(disk / "device", "cam-1").admit(platform)
    fill_disk(disk / "ballast")
    edge.start()
    try:
        with EdgeDevice(edge.folder / "edge.toml") as device:
            eventually(lambda: show(platform, edge.address)["online"], "the agent to connect")
            device.send("sample", {"number": 1})
            assert device.storage == "memory"
            (disk / "ballast").unlink()
            device._outbox.database._tried_at = 0.0
        eventually(lambda: numbers_in(platform) == [1], "the letter of the other process")
    finally:
        assert edge.stop() == 0, edge.log()
