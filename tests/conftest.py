from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.platform import LivePlatform

settings.register_profile("default", deadline=None, max_examples=60)
settings.load_profile("default")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LivePlatform]:
    """A fresh platform with its bus running; the test starts the services that it needs."""
    platform = LivePlatform.start(tmp_path / "state")
    try:
        yield platform
    finally:
        platform.stop()
