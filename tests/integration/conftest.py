from __future__ import annotations

import pytest

from tests.support.platform import LivePlatform


@pytest.fixture
def platform(live: LivePlatform) -> LivePlatform:
    """With what a device needs: to enrol, to keep its trust fresh, to exchange letters."""
    live.start_services("depot", "registry", "courier")
    return live
