from __future__ import annotations

from collections.abc import Iterator

import pytest
from ulid import ULID

from tests.support.platform import LivePlatform
from tests.support.raw_device import RawDevice, enrol


@pytest.fixture
def platform(live: LivePlatform) -> LivePlatform:
    """With what a device needs: to enrol, to keep its trust fresh, to exchange letters."""
    live.start_services("depot", "registry", "courier")
    return live


@pytest.fixture
def carrier(request: pytest.FixtureRequest) -> Iterator[RawDevice]:
    """A device with a link."""
    live = request.getfixturevalue("world" if "world" in request.fixturenames else "live")
    device = RawDevice(live, f"carrier-{ULID()}")
    enrol(live, device)
    device.connect()
    yield device
    device.close()
