"""A device without any network: its letters go out and its receipts and its model come in on a stick."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.sdk import EdgeDevice
from schemas.envelope import parse
from schemas.letters import read_up
from schemas.topics import in_of
from services.kit.api.ota import CreateRequest, RolloutRequest
from services.kit.bus import Bus
from tests.support.courier_world import stored
from tests.support.edge import EdgeProcess, ask
from tests.support.models import scale_model, sha256
from tests.support.netns import Net, unavailable
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import in_bus
from tests.support.releases import FACTOR, causeway, publish

reason = unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=reason or "")


@pytest.fixture
def platform(live: LivePlatform) -> LivePlatform:
    live.start_services("depot", "registry", "courier", "ota")
    return live


@pytest.fixture
def device(platform: LivePlatform, tmp_path: Path) -> Iterator[EdgeProcess]:
    """Enrolled over the network, once; since then on a machine without any interface, not even a loopback."""
    with Net() as net, EdgeProcess.make(tmp_path / "device", "cam-1").admit(platform) as made:
        machine = net.machine("cam", loopback=False)
        made.prefix = machine.prefix
        made.start()
        yield made
        assert machine.ip("link", "show", "up") == ""
        assert "Network is unreachable" in made.status()["problem"]


class Traveller:
    """A person with a stick, which is mounted at one end at a time."""

    def __init__(self, live: LivePlatform, device: EdgeProcess, folder: Path) -> None:
        self._live = live
        self._device = device
        self._folder = folder
        self._mount = folder / "device"
        self._mount.mkdir(parents=True)

    def to_platform(self) -> dict[str, Any]:
        """From the device to the platform: what it had to say is taken."""
        self._at_device("export")
        return self._at_platform("import")

    def to_device(self) -> dict[str, Any]:
        """From the platform to the device: what waits for it is taken."""
        self._at_platform("export", "--device", str(self._device.address))
        return self._at_device("import")

    def _go(self, end: str) -> Path:
        if self._mount.name != end:
            self._mount = self._mount.rename(self._folder / end)
        return self._mount

    def _at_device(self, verb: str) -> dict[str, Any]:
        done = self._device.call("bundle", verb, str(self._go("device")), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _at_platform(self, verb: str, *more: str) -> dict[str, Any]:
        done = causeway(self._live, "bundle", verb, self._go("platform"), *more, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


def numbers(live: LivePlatform) -> list[int]:
    """What IN holds of the device's samples."""
    found = [
        read_up(parse(raw).body, "sample") for subject, _, raw in stored(live) if subject.startswith("cw.in.sample.")
    ]
    return [letter.data.number for letter in found]


def receipted(device: EdgeProcess) -> int:
    """Up to which letter of the normal lane the device holds a receipt."""
    return int(device.status().get("lanes", {}).get("normal", {}).get("mark", 0))


def test_letters_and_a_model_travel_by_stick_alone(platform: LivePlatform, device: EdgeProcess, tmp_path: Path) -> None:
    traveller = Traveller(platform, device, tmp_path / "sticks")
    with EdgeDevice(device.folder / "edge.toml") as host:
        for number in range(50):
            host.send("sample", {"number": number})
    (origin,) = traveller.to_platform()["origins"]
    assert origin["stored"] >= 50
    assert numbers(platform) == list(range(50))

    # The stick brings the receipt; only on it may the device forget.
    traveller.to_device()
    eventually(lambda: receipted(device) >= 50, "the receipt to be believed")

    publish(platform, tmp_path)
    request = CreateRequest(
        model="scale", version="1.0.0", fleet="home", devices=["cam-1"], waves=[1.0], deadline_s=600
    )
    rollout = ask(platform, "ota", "create", request)["rollout"]

    def assigned() -> bool:
        return any(subject.startswith("cw.out.home.cam-1.assign.") for subject, _, _ in stored(platform, "OUT"))

    eventually(assigned, "the assignment to lie in the mailbox")
    taken = traveller.to_device()
    assert taken["pieces"] >= 2

    def installed() -> bool:
        return any(model["name"] == "scale" for model in device.status().get("models", []))

    eventually(installed, "the model to be installed", 40)
    with EdgeDevice(device.folder / "edge.toml") as host:
        assert host.infer("scale", {"x": [[1.0, 2.0, 3.0, 4.0]]})["y"].tolist() == [[FACTOR * n for n in (1, 2, 3, 4)]]

    def reported() -> bool:
        traveller.to_platform()
        return ask(platform, "ota", "show", RolloutRequest(rollout=rollout))["state"] == "done"

    eventually(reported, "the device's report to count as success")
    (progress,) = ask(platform, "ota", "show", RolloutRequest(rollout=rollout))["devices"]
    assert progress["state"] == "succeeded"
    assert numbers(platform) == list(range(50))
    assert sha256(scale_model(FACTOR)) in json.dumps(device.status())


def test_what_the_platform_lost_is_recalled_by_stick_and_an_old_receipt_does_not_hold_it_back(
    platform: LivePlatform, device: EdgeProcess, tmp_path: Path
) -> None:
    traveller = Traveller(platform, device, tmp_path / "sticks")
    with EdgeDevice(device.folder / "edge.toml") as host:
        host.send_many("sample", [{"number": number} for number in range(20)])
    traveller.to_platform()
    traveller.to_device()
    eventually(lambda: receipted(device) >= 20, "the receipt to be believed")

    # A stick that was written before the loss, and lies in a drawer.
    stale = tmp_path / "drawer"
    stale.mkdir()
    assert causeway(platform, "bundle", "export", stale, "--device", str(device.address)).exit_code == 0

    async def lose(bus: Bus) -> None:
        await bus.js.purge_stream("IN", subject=in_of(device.address))

    in_bus(platform, "courier", lose)
    assert numbers(platform) == []
    recalled = causeway(platform, "letters", "recall", str(device.address), "--all")
    assert recalled.exit_code == 0, recalled.output
    traveller.to_device()
    eventually(lambda: receipted(device) == 0, "the recall to be obeyed")
    done = device.call("bundle", "import", str(stale), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arrived"] > 0

    def back() -> bool:
        traveller.to_platform()
        return numbers(platform) == list(range(20))

    eventually(back, "the letters to be there again")
