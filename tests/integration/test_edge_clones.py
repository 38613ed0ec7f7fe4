"""Copied and restored disks of real agents: what the platform and the devices make of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.sdk import EdgeDevice
from schemas.envelope import parse
from schemas.letters import read_up
from tests.support.commands import cli
from tests.support.courier_world import stored
from tests.support.edge import EdgeProcess, show
from tests.support.platform import LivePlatform, eventually


@pytest.fixture
def device(platform: LivePlatform, tmp_path: Path) -> Iterator[EdgeProcess]:
    """An enrolled device with three letters in IN, at rest."""
    with EdgeProcess.make(tmp_path / "device", "cam-1").admit(platform) as made:
        made.start()
        write(made, *range(3))
        eventually(lambda: waiting(made) == 0, "three receipts")
        made.stop()
        yield made


def write(device: EdgeProcess, *numbers: int) -> None:
    with EdgeDevice(device.folder / "edge.toml") as host:
        for number in numbers:
            host.send("sample", {"number": number})


def waiting(device: EdgeProcess) -> int:
    return int(device.rows("SELECT count(*) FROM letters WHERE state = 'waiting'")[0][0])


def samples(live: LivePlatform) -> list[int]:
    found = [raw for subject, _, raw in stored(live) if subject.startswith("cw.in.sample.")]
    return [read_up(parse(raw).body, "sample").data.number for raw in found]


def copied(device: EdgeProcess, folder: Path) -> EdgeProcess:
    """The same disk in another body."""
    shutil.copytree(device.folder, folder)
    return EdgeProcess(folder, device.address)


def test_what_was_written_on_a_restored_disk_is_not_taken_for_what_the_platform_holds(
    platform: LivePlatform, device: EdgeProcess, tmp_path: Path
) -> None:
    image = copied(device, tmp_path / "image")
    device.start()
    write(device, *range(3, 8))
    eventually(lambda: waiting(device) == 0, "eight receipts")
    device.kill()
    # More is written on the older disk than it had lost, so the platform's mark is not above what it issued.
    write(image, *range(8, 18))
    image.start()
    eventually(lambda: samples(platform) == list(range(18)), "every letter of both", 30)
    eventually(lambda: waiting(image) == 0, "all receipts")
    assert show(platform, device.address)["standing"] == "enrolled"
    image.stop()


def test_two_bodies_are_stopped_and_the_one_that_is_left_loses_nothing(
    platform: LivePlatform, device: EdgeProcess, tmp_path: Path
) -> None:
    clone = copied(device, tmp_path / "clone")
    device.start()
    clone.start()
    # One after the other they write on; each connection takes over the other's.
    number = [3]

    def caught() -> dict[str, Any] | None:
        for each, first in ((device, 1_000), (clone, 2_000)):
            write(each, first + number[0])
        number[0] += 1
        view = show(platform, device.address)
        return view if view["standing"] == "quarantined" else None

    why = eventually(caught, "the quarantine", 60)["quarantine"]
    assert why["reason"] in {"old_epoch", "two_letters"}
    assert device.process is not None
    assert clone.process is not None
    assert (device.process.poll(), clone.process.poll()) == (None, None)

    eventually(lambda: device.status()["suspended"] or clone.status()["suspended"], "a body to learn of it")
    told = device if device.status()["suspended"] else clone
    said = told.call("status")
    assert said.returncode == 4
    assert "in quarantine" in said.stdout
    assert why["message"] in said.stdout
    assert "causeway device release cam-1 --fleet home" in said.stdout
    assert why["message"] in told.call("explain").stdout

    clone.kill()
    written = list(range(5_000, 5_005))
    write(device, *written)
    cli(platform, "device", "release", "cam-1", "--yes")
    eventually(lambda: waiting(device) == 0, "all receipts of the device that is left", 60)
    eventually(lambda: device.status()["suspended"] is None, "the device to learn that it is released")
    # A letter whose receipt was lost may stand in IN under the old epoch and the new one; its id is the same.
    mine = list(dict.fromkeys(n for n in samples(platform) if n < 2_000 or n >= 5_000))
    assert mine == [0, 1, 2, *range(1_003, 1_000 + number[0]), *written]
    assert show(platform, device.address)["standing"] == "enrolled"
