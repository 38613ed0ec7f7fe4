"""JetStream comes back older than it was: devices send again what it lost, by themselves, in order, nothing twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schemas.registry import Twin
from tests.support.courier_world import ids, letters, post, stored
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol

World = tuple[RawDevice, RawDevice]


@pytest.fixture
def pair(live: LivePlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Two connected devices; the courier runs, and saves its marks after a few letters."""
    monkeypatch.setenv("CAUSEWAY_COURIER_SNAPSHOT_LETTERS", "5")
    made = RawDevice(live, "cam-1"), RawDevice(live, "cam-2")
    enrol(live, *made)
    live.start_service("courier")
    for device in made:
        device.connect()
        device.greet()
    yield made
    for device in made:
        device.close()


def write(pair: World, count: int) -> None:
    """Letters of two lanes of both, in turns, until they are receipted."""
    for _ in range(count):
        for device in pair:
            device.send()
        pair[0].send(lane="control")
    for device in pair:
        device.settle()


def streams(live: LivePlatform) -> Path:
    [found] = live.state.nats_data.glob("jetstream/jetstream/*/streams")
    return found


def restart(live: LivePlatform, pair: World, change: Callable[[], None]) -> None:
    """Kill the server, do something to its files, and start it again."""
    live.kill("nats-server")
    for device in pair:
        device.subscribed.clear()
    change()
    live.start_bus()
    for device in pair:
        assert device.subscribed.wait(20)


def back_up(live: LivePlatform, pair: World) -> Path:
    copy = live.state.root / "backup"
    restart(live, pair, lambda: shutil.copytree(streams(live), copy))
    return copy


def put_back(live: LivePlatform, backup: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(streams(live) / name)
        shutil.copytree(backup / name, streams(live) / name)


def all_there(live: LivePlatform, pair: World, normal: int) -> None:
    """IN holds every letter, each lane in order; `control` has as many as `normal`."""
    for device in pair:
        device.settle()
    names = letters(live)
    for device, lane in ((pair[0], "normal"), (pair[0], "control"), (pair[1], "normal")):
        found = [name for name in names if f":{device.name}:" in name and f":{lane}:" in name]
        assert found == ids(device, lane, normal)
    assert len(names) == 3 * normal


@pytest.mark.parametrize(
    "older",
    [("IN", "OUT", "KV_marks"), ("IN",), ("KV_marks",), ("IN", "OUT")],
    ids=["everything", "in-behind-marks", "marks-behind-in", "in-and-out-behind-marks"],
)
def test_a_backup_of_jetstream_is_filled_up_by_the_devices(
    live: LivePlatform, pair: World, older: tuple[str, ...]
) -> None:
    first, _ = pair
    write(pair, 4)
    [taken] = post(live, first, "config", Twin(heartbeat_s=10), slot="-")
    eventually(lambda: taken in {letter.id for letter in first.down("config")}, "the letter down")
    backup = back_up(live, pair)
    first.greet()
    first.got(taken)
    eventually(lambda: stored(live, "OUT") == [], "the mailbox to be empty")
    write(pair, 6)
    before = len(first.down("config"))

    restart(live, pair, lambda: put_back(live, backup, *older))
    # Nobody acts but the devices, which say hello.
    for device in pair:
        device.greet()
    all_there(live, pair, 10)
    if "OUT" in older:
        # What was got came back; the device knows it by its id and says so again.
        eventually(lambda: len(first.down("config")) > before, "the letter once more")
        assert {letter.id for letter in first.down("config")} == {taken}
        first.got(taken)
        eventually(lambda: stored(live, "OUT") == [], "the mailbox to be empty again")
    # And the next letters go on from there, also with a courier that only knows what is stored.
    live.kill("courier")
    live.start_service("courier")
    write(pair, 1)
    all_there(live, pair, 11)


@pytest.mark.parametrize("share", [0.9, 0.4], ids=["a-little", "most"])
def test_a_server_that_lost_the_end_of_its_files_gets_it_again(live: LivePlatform, pair: World, share: float) -> None:
    write(pair, 10)

    def cut() -> None:
        """As after a power cut: acknowledged, and never on the disk."""
        [block] = (streams(live) / "IN" / "msgs").glob("*.blk")
        with block.open("r+b") as file:
            file.truncate(int(block.stat().st_size * share))
        for index in (streams(live) / "IN" / "msgs").glob("*.idx"):
            index.unlink()

    restart(live, pair, cut)
    left = sum(sum(device.greet().marks.values()) for device in pair)
    assert left < 30
    all_there(live, pair, 10)


def test_a_courier_that_dies_while_it_heals_begins_again(live: LivePlatform, pair: World) -> None:
    write(pair, 3)
    backup = back_up(live, pair)
    write(pair, 9)
    live.kill("courier")
    restart(live, pair, lambda: put_back(live, backup, "IN"))
    for _ in range(2):
        live.start_service("courier")
        for device in pair:
            device.hello()
            device.send_again()
        live.kill("courier")
    live.start_service("courier")
    for device in pair:
        device.greet()
    all_there(live, pair, 12)
