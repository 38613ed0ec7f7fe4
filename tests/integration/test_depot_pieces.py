"""An artifact from the store to a device, piece by piece, over the real bus and a real MQTT client."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_runtime.errors import FetchError
from edge_runtime.parcels.fetching import PieceFetcher
from schemas.aggregator import Artifact
from schemas.depot import Want
from schemas.ids import Address
from schemas.topics import Channel
from services.kit import rpc
from services.kit.api.depot import RegisterRequest
from services.kit.artifacts import open_store
from services.kit.bus import connect
from tests.support.depot_device import MqttDevice, enrol
from tests.support.platform import LivePlatform, eventually

CAM = Address("home", "cam-1")
DATA = random.Random(7).randbytes(3_000_000)


def register(live: LivePlatform, data: bytes) -> Artifact:
    async def call() -> Artifact:
        digest = await open_store(live.state, live.settings).put(data)
        bus = await connect(live.state, live.settings, "aggregator")
        try:
            return Artifact.model_validate(await rpc.call(bus, "depot", "register", RegisterRequest(sha256=digest)))
        finally:
            await bus.close()

    return asyncio.run(call())


@pytest.fixture
def depot(live: LivePlatform) -> LivePlatform:
    enrol(live, CAM)
    live.start_service("depot")
    eventually(lambda: "causeway_depot_known_devices 1.0" in live.metrics("depot"), "the depot to know the device")
    return live


class Link:
    """A fetcher on a device's MQTT connection, as the agent wires it."""

    def __init__(self, device: MqttDevice, **settings: float) -> None:
        self.device = device
        self.fetcher = PieceFetcher(device, **settings)  # type: ignore[arg-type]
        self.refusals: list[object] = []
        self.tamper = False
        loop = asyncio.get_running_loop()
        device.hook = lambda kind, raw: loop.call_soon_threadsafe(self._take, kind, raw)

    def _take(self, kind: str, raw: bytes) -> None:
        if kind in {"piece", "slice"} and not self.device.lose("down"):
            if self.tamper and len(raw) > 40_000:
                self.tamper = False
                raw = raw[:100] + bytes([raw[100] ^ 1]) + raw[101:]
            refusal = self.fetcher.received(raw) if kind == "piece" else self.fetcher.received_slice(raw)
            if refusal:
                self.refusals.append(refusal)

    def down_bytes(self) -> int:
        """Of pieces and slices."""
        return sum(len(raw) for kind in ("piece", "slice") for raw in self.device.down.get(kind, []))


@pytest.fixture
async def link(depot: LivePlatform) -> AsyncIterator[Link]:
    device = await asyncio.to_thread(MqttDevice, depot, CAM)
    yield Link(device)
    device.close()


async def test_an_artifact_arrives_whole(depot: LivePlatform, link: Link, tmp_path: Path) -> None:
    artifact = await asyncio.to_thread(register, depot, DATA)
    assert 3_000_000 / (256 << 10) < artifact.pieces < 3_000_000 / (16 << 10)
    destination = tmp_path / "staging" / "model"
    await link.fetcher.fetch(artifact, destination)
    assert destination.read_bytes() == DATA
    assert link.refusals == []
    # Until the link is known to be fast, large pieces come in slices.
    assert "slice" in link.device.down
    size = link.down_bytes()
    assert len(DATA) < size < 1.02 * len(DATA), "each piece once, and the recipe"
    await link.fetcher.fetch(artifact, destination)
    assert link.down_bytes() == size, "what is there is not asked for again"


async def test_a_torn_file_costs_only_what_is_torn(depot: LivePlatform, link: Link, tmp_path: Path) -> None:
    artifact = await asyncio.to_thread(register, depot, DATA)
    destination = tmp_path / "model"
    destination.write_bytes(DATA[:1_500_000] + os.urandom(100) + DATA[1_500_100:2_000_000])
    await link.fetcher.fetch(artifact, destination)
    assert destination.read_bytes() == DATA
    assert link.down_bytes() < 0.6 * len(DATA)


async def test_lost_wants_and_pieces_are_made_up_for(depot: LivePlatform, link: Link, tmp_path: Path) -> None:
    artifact = await asyncio.to_thread(register, depot, DATA)
    chance = random.Random(3)
    seen = []

    def lose(kind: str) -> bool:
        seen.append(kind)
        return len(seen) < 60 and chance.random() < 0.1

    link.device.lose = lose
    await link.fetcher.fetch(artifact, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == DATA


async def test_a_tampered_piece_is_refused_and_fetched_again(depot: LivePlatform, link: Link, tmp_path: Path) -> None:
    artifact = await asyncio.to_thread(register, depot, DATA)
    link.tamper = True
    await link.fetcher.fetch(artifact, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == DATA
    assert [refusal.reason for refusal in link.refusals] == ["wrong_digest"]


async def test_several_artifacts_at_once_share_the_window(depot: LivePlatform, link: Link, tmp_path: Path) -> None:
    datas = [random.Random(n).randbytes(400_000 + n) for n in range(3)]
    artifacts = [await asyncio.to_thread(register, depot, data) for data in datas]
    await asyncio.gather(*(link.fetcher.fetch(a, tmp_path / a.sha256) for a in artifacts))
    assert [(tmp_path / a.sha256).read_bytes() for a in artifacts] == datas


async def test_a_device_that_is_not_enrolled_gets_no_pieces(depot: LivePlatform, tmp_path: Path) -> None:
    artifact = await asyncio.to_thread(register, depot, b"secret" * 1000)
    stranger = await asyncio.to_thread(MqttDevice, depot, Address("home", "stranger"))
    fetcher = PieceFetcher(stranger, patience_s=0.1)
    with pytest.raises(FetchError, match="none came") as raised:
        await fetcher.fetch(artifact, tmp_path / "model")
    assert raised.value.reason == "timeout"
    assert "not_enrolled" in await asyncio.to_thread(depot.metrics, "depot")
    assert "piece" not in stranger.down
    stranger.close()


async def test_registering_again_gives_the_same_recipe(depot: LivePlatform, link: Link) -> None:
    first = await asyncio.to_thread(register, depot, DATA)
    assert await asyncio.to_thread(register, depot, DATA) == first
    want = Want(recipe=first.recipe)
    link.device.publish(Channel.PARCEL, "want", want.write())
    raw = await asyncio.to_thread(link.device.newest, "piece")
    assert raw[:32].hex() == first.recipe == hashlib.sha256(raw[32:]).hexdigest()


async def test_pieces_outlive_a_killed_depot(depot: LivePlatform, link: Link, tmp_path: Path) -> None:
    artifact = await asyncio.to_thread(register, depot, DATA)
    fetching = asyncio.create_task(link.fetcher.fetch(artifact, tmp_path / "model"))
    await asyncio.to_thread(lambda: eventually(link.down_bytes, "the first piece"))
    await asyncio.to_thread(depot.kill, "depot")
    await asyncio.to_thread(depot.start_service, "depot")
    await fetching
    assert (tmp_path / "model").read_bytes() == DATA
