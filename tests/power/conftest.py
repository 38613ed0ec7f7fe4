from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.power.recording import compiled

LONG = bool(os.environ.get("LONG_TESTS"))
SEEDS = 12 if LONG else 1
KILLS = None if LONG else 8
"""None: at every effect."""
TIMEOUT_S = 1_800 if LONG else 180
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More of everything takes its time."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("recorder"))


@pytest.fixture(scope="session")
def seeds() -> range:
    """More of everything where there is time for it."""
    return range(SEEDS)


@pytest.fixture(scope="session")
def kills() -> int | None:
    """How often a workload is killed, each time at another effect."""
    return KILLS


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose syncs cost nothing; the disks are imagined ones."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="causeway-power-") as name:
        yield Path(name)
