"""The gateway over real HTTP: what it answers, and what it says when a service is not there."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

from services.kit import rpc
from services.kit.api.scheduler import SubmitRequest
from services.kit.bus import connect
from tests.support.fleet import StandInFleet
from tests.support.platform import LivePlatform, until


@pytest.fixture
async def fleet(live: LivePlatform) -> AsyncIterator[StandInFleet]:
    fleet = await StandInFleet.start(live)
    await fleet.add("cam-1", reading={"battery_percent": 0.0, "ram_free_mb": 100})
    await fleet.add("cam-2", online=False)
    yield fleet
    await fleet.close()


@pytest.fixture
async def http(live: LivePlatform, fleet: StandInFleet) -> AsyncIterator[httpx.AsyncClient]:
    live.start_service("gateway")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{live.settings.http.gateway_port}") as client:
        yield client


async def test_devices_and_their_status(http: httpx.AsyncClient) -> None:
    status = (await http.get("/api/agents/status")).json()
    assert (status["total"], status["online"], status["by_status"]) == (2, 1, {"online": 1, "offline": 1})
    cam = status["agents"][0]
    assert (cam["device"], cam["battery_percent"], cam["temp_c"]) == ("cam-1", 0.0, None)
    assert cam["last_seen"] == "2026-01-01T00:00:00Z"

    listed = (await http.get("/api/devices", params={"fleet": "harbour"})).json()
    assert [device["device"] for device in listed] == ["cam-1", "cam-2"]
    assert (await http.get("/api/devices", params={"fleet": "elsewhere"})).json() == []
    one = (await http.get("/api/devices/harbour/cam-2")).json()
    assert (one["device"], one["online"]) == ("cam-2", False)


async def test_errors_are_json_with_the_next_step(http: httpx.AsyncClient) -> None:
    async def error(path: str, method: str = "GET") -> tuple[int, str, str]:
        answer = await http.request(method, path)
        body = answer.json()["error"]
        return answer.status_code, body["code"], body["message"]

    assert (await error("/api/devices/harbour/nobody"))[:2] == (404, "not_found")
    assert (await error("/api/devices/harbour/a.b"))[:2] == (422, "malformed")
    assert (await error("/api/tasks?limit=0"))[:2] == (422, "malformed")
    assert (await error("/api/unheard-of"))[:2] == (404, "not_found")
    assert (await error("/api/devices", "POST"))[0] == 405
    for path, service in (("/api/tasks", "scheduler"), ("/api/rollouts", "ota"), ("/api/jobs", "aggregator")):
        status, code, message = await error(path)
        assert (status, code) == (503, "unreachable")
        assert service in message
        assert "causeway up" in message


async def test_health_names_the_services_that_do_not_answer(http: httpx.AsyncClient) -> None:
    answer = await http.get("/health")
    assert answer.status_code == 200
    health = answer.json()
    assert (health["status"], health["bus"]) == ("degraded", "connected")
    assert health["services"]["registry"] == "ok"
    assert health["services"]["scheduler"] == "unreachable"


async def test_tasks_with_their_reasons(live: LivePlatform, http: httpx.AsyncClient) -> None:
    live.start_service("scheduler")
    operator = await connect(live.state, live.settings, "operator")
    try:
        request = SubmitRequest(kind="diagnose", runner="profile@1", fleet="harbour")
        await rpc.call(operator, "scheduler", "submit", request)
    finally:
        await operator.close()
    [task] = (await http.get("/api/tasks")).json()
    assert task["state"] == "queued"
    assert {reason["device"]: reason["why"] for reason in task["reasons"]}["cam-2"] == "offline"
    assert (await http.get("/health")).json()["services"]["scheduler"] == "ok"


async def test_metrics_hold_what_could_be_asked_and_no_series_per_device(http: httpx.AsyncClient) -> None:
    await http.get("/api/devices/harbour/cam-1")
    page = (await http.get("/metrics")).text
    assert "devices_connected_total 1.0" in page
    assert "training_rounds_completed" not in page  # the aggregator does not run: absent, not 0
    assert 'causeway_http_requests_total{route="/api/devices/{fleet}/{device}",status="200"} 1.0' in page
    assert "cam-1" not in page


async def test_the_description_is_complete(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    assert document["info"]["title"] == "Causeway"
    assert document["openapi"].startswith("3.1")
    for path in (
        "/health",
        "/api/agents/status",
        "/api/devices",
        "/api/rollouts",
        "/api/tasks",
        "/api/jobs",
        "/metrics",
    ):
        assert document["paths"][path]["get"]["summary"]
        assert set(document["paths"][path]) == {"get"}


async def test_without_the_bus_it_stays_and_says_so(live: LivePlatform, http: httpx.AsyncClient) -> None:
    live.kill("nats-server")

    async def unavailable() -> bool:
        answer = await http.get("/health")
        return answer.status_code == 503 and answer.json()["status"] == "unavailable"

    await until(unavailable, "the gateway to see that the bus is gone")
    devices = await http.get("/api/devices")
    assert (devices.status_code, devices.json()["error"]["code"]) == (503, "unreachable")


def test_a_taken_port_is_a_sentence(live: LivePlatform) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", live.settings.http.gateway_port))
        taken.listen()
        command = [sys.executable, "-m", "services.gateway", "--state", str(live.state.root)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"gateway: serve HTTP on 127.0.0.1:{live.settings.http.gateway_port}: Address already in use"
    )
    assert "http.gateway_port" in last


def test_it_ends_when_told(live: LivePlatform) -> None:
    live.start_service("gateway")
    process = live.processes.pop("gateway")
    process.terminate()
    assert process.wait(15) == 0
    assert "Traceback" not in live.log("gateway")
