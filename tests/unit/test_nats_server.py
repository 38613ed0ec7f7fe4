"""How `causeway up` tells nats-server what memory it may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from causeway.platform.nats_server import collector
from causeway.platform.supervisor import Supervisor
from services.kit.folder import StateFolder
from services.kit.settings import BusSettings


@pytest.mark.parametrize(
    ("bus", "environment"),
    [
        (BusSettings(), {"GOGC": "50"}),
        (BusSettings(gc_percent=25, memory_mb=640), {"GOGC": "25", "GOMEMLIMIT": "640MiB"}),
    ],
)
def test_the_collector_is_bounded_only_where_that_is_asked_for(bus: BusSettings, environment: dict[str, str]) -> None:
    assert collector(bus) == environment


def test_the_bus_is_started_with_it(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.settings.write_text('platform = "01J00000000000000000000000"\n[bus]\nmemory_mb = 640\n')
    bus = Supervisor(state, services=()).children[0]
    assert bus.environment == {"GOGC": "50", "GOMEMLIMIT": "640MiB"}
