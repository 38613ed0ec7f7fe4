"""What the gateway makes of the services' answers."""

from __future__ import annotations

from services.gateway import pages
from tests.unit.test_placement_scores import node


def test_a_reading_that_is_absent_stays_absent_and_zero_stays_zero() -> None:
    views = [node("cam-1", battery_percent=0.0).view, node("cam-2", heartbeat=None).view]
    status = pages.agents_status(views)
    assert [agent.battery_percent for agent in status.agents] == [0.0, None]
    assert status.agents[0].waiting_letters is None
    assert status.agents[0].tasks == 0
    assert status.agents[1].last_seen is None


def test_standing_goes_before_presence() -> None:
    views = [node("a").view, node("b", online=False).view, node("c", standing="revoked").view]
    status = pages.agents_status([*views, node("d", standing="quarantined").view])
    assert [agent.status for agent in status.agents] == ["online", "offline", "revoked", "quarantined"]
    assert status.by_status == {"online": 1, "offline": 1, "revoked": 1, "quarantined": 1}
    assert (status.total, status.online) == (4, 1)


def test_health_is_degraded_by_a_service_and_unavailable_without_the_bus() -> None:
    assert pages.health({"registry": "ok"}, connected=True).status == "ok"
    assert pages.health({"registry": "ok", "ota": "unreachable"}, connected=True).status == "degraded"
    assert pages.health({"registry": "unreachable"}, connected=False).status == "unavailable"
