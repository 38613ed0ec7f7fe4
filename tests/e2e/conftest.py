"""A platform with three services, and devices for it, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.edge import EdgeProcess
from tests.support.platform import LivePlatform, serving
from tests.support.raw_device import RawDevice, enrol


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    """A platform that no test may break for the next."""
    with serving(tmp_path_factory.mktemp("world") / "state", "depot", "registry", "courier") as live:
        yield live


@pytest.fixture(scope="module")
def cam(world: LivePlatform) -> Iterator[RawDevice]:
    device = RawDevice(world, "cam-1")
    enrol(world, device)
    device.connect()
    device.greet()
    yield device
    device.close()


@pytest.fixture(scope="module")
def stranger(world: LivePlatform) -> Iterator[RawDevice]:
    """A device with credentials that the registry knows nothing of."""
    device = RawDevice(world, "stranger")
    device.connect()
    yield device
    device.close()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Callable[[str], EdgeProcess]]:
    """Makes devices that run the real agent."""
    made: list[EdgeProcess] = []

    def make(name: str) -> EdgeProcess:
        made.append(EdgeProcess.make(tmp_path / name, name))
        return made[-1]

    yield make
    for device in made:
        if device.process is not None:
            device.kill()
