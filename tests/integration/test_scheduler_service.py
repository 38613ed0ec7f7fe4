"""The scheduler on the real bus: records, letters, results, leases, and what a kill leaves behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ulid import ULID

from schemas.scheduler import Result
from services.kit import rpc
from services.kit.api.scheduler import Requires, SubmitRequest, TaskListRequest, TaskRequest, TaskView
from services.kit.bus import Bus, connect
from services.kit.errors import NotFoundError, RefusedError
from services.scheduler.leases import TaskRecord
from tests.support.fleet import StandInDevice, StandInFleet
from tests.support.platform import LivePlatform, until


@pytest.fixture
async def fleet(live: LivePlatform) -> AsyncIterator[StandInFleet]:
    fleet = await StandInFleet.start(live)
    yield fleet
    await fleet.close()


@pytest.fixture
async def operator(live: LivePlatform, fleet: StandInFleet) -> AsyncIterator[Bus]:
    bus = await connect(live.state, live.settings, "operator")
    yield bus
    await bus.close()


async def submit(bus: Bus, **changes: Any) -> list[TaskView]:
    values: dict[str, Any] = {"kind": "diagnose", "runner": "profile@1", "fleet": "harbour"}
    answer = await rpc.call(bus, "scheduler", "submit", SubmitRequest.model_validate(values | changes))
    return [TaskView.model_validate(view) for view in answer]


async def show(bus: Bus, task: str) -> TaskView:
    return TaskView.model_validate(await rpc.call(bus, "scheduler", "show", TaskRequest(task=task)))


def result(view: TaskView, term: int | None = None, **changes: Any) -> Result:
    values = {"task": view.task, "term": term or view.term, "outcome": "ok", "took_s": 1, "cpu_s": 1}
    return Result.model_validate(values | changes)


async def in_state(bus: Bus, task: str, state: str, term: int | None = None) -> TaskView:
    async def probe() -> TaskView | None:
        view = await show(bus, task)
        return view if view.state == state and term in {None, view.term} else None

    return await until(probe, f"task {task} to be {state}")


def metric(platform: LivePlatform, name: str) -> float:
    for line in platform.metrics("scheduler").splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    return 0.0


async def test_tasks_spread_by_score_and_their_results_are_applied_once(
    live: LivePlatform, fleet: StandInFleet, operator: Bus
) -> None:
    for index in range(3):
        await fleet.add(f"cam-{index}")
    await fleet.add("weak", reading={"battery_percent": 10.0, "ram_free_mb": 1_000})
    live.start_service("scheduler")

    views = await submit(operator, count=12)
    assert Counter(view.device for view in views) == {"cam-0": 4, "cam-1": 4, "cam-2": 4}
    assert {view.state for view in views} == {"leased"}
    reasons = {reason.device: reason for reason in views[0].reasons}
    assert views[0].reasons[0].device == views[0].device
    assert reasons["weak"].score is None
    assert reasons["weak"].why == "battery 10 % is below 30 %, not charging"

    letters = await fleet.mailbox("task")
    assert Counter(letter.recipient for letter in letters) == {f"/fleets/harbour/devices/cam-{n}": 4 for n in range(3)}
    assert all(letter.slot == letter.id and letter.expires == letter.data.deadline for letter in letters)
    assert {letter.data.task for letter in letters} == {view.task for view in views}

    devices = {address.device: device for address, device in fleet.devices.items()}
    raws = [await fleet.send(devices[view.device or ""], "result", result(view)) for view in views]
    for view in views:
        done = await in_state(operator, view.task, "done")
        assert len(done.results) == 1
    await fleet.put(devices[views[0].device or ""], "result", raws[0])
    await fleet.send(devices[views[1].device or ""], "result", result(views[1]))
    counted = await until(lambda: _stale(operator, views[1].task), "the second letter to be counted")
    assert len(counted.results) == 1
    assert (await show(operator, views[0].task)).stale_results == 0
    assert metric(live, "causeway_stale_results_total") == 1
    assert metric(live, 'causeway_tasks{state="done"}') == 12


async def _stale(bus: Bus, task: str) -> TaskView | None:
    view = await show(bus, task)
    return view if view.stale_results else None


async def test_a_silent_device_loses_the_task_to_another_and_its_late_result_is_counted(
    live: LivePlatform, fleet: StandInFleet, operator: Bus
) -> None:
    first = await fleet.add("first", cores=64)
    second = await fleet.add("second")
    live.start_service("scheduler")
    [view] = await submit(operator, deadline_s=0.5)
    assert view.device == "first"
    first.online = False

    again = await in_state(operator, view.task, "leased", term=2)
    assert again.device == "second"
    await fleet.send(first, "result", result(view, 1))
    late = await until(lambda: _stale(operator, view.task), "the late result to be counted")
    assert late.results == []
    await fleet.send(second, "result", result(view, 2))
    done = await in_state(operator, view.task, "done")
    assert [(applied.device, applied.term) for applied in done.results] == [("second", 2)]
    letters = await fleet.mailbox("task")
    assert [letter.data.term for letter in letters] == [1, 2]
    assert letters[0].id != letters[1].id


async def test_a_refusal_sends_the_task_on_and_the_last_one_fails_it(
    live: LivePlatform, fleet: StandInFleet, operator: Bus
) -> None:
    devices = {name: await fleet.add(name) for name in ("one", "two")}
    live.start_service("scheduler")
    events = await operator.nc.subscribe("cw.ev.scheduler.task-done")
    await operator.nc.flush()
    [view] = await submit(operator, max_terms=2)
    for term in (1, 2):
        held = await in_state(operator, view.task, "leased", term=term)
        no = result(view, term, outcome="refused", reason="battery", message="battery at 9 %")
        await fleet.send(devices[held.device or ""], "result", no)
    failed = await in_state(operator, view.task, "failed")
    assert {applied.device for applied in failed.results} == {"one", "two"}
    assert "no term of 2 is left" in (failed.reason or "")
    event = json.loads((await events.next_msg(5)).data)
    assert (event["task"], event["state"]) == (view.task, "failed")


async def test_a_task_waits_until_a_device_may_have_it(live: LivePlatform, fleet: StandInFleet, operator: Bus) -> None:
    hot = await fleet.add("hot", reading={"temp_c": 90.0, "ram_free_mb": 1_000})
    live.start_service("scheduler")
    [view] = await submit(operator)
    assert (view.state, view.device) == ("queued", None)
    assert view.reasons[0].why == "90 C is above 55 C"
    hot.reading["temp_c"] = 40.0
    assert (await in_state(operator, view.task, "leased")).device == "hot"


async def test_results_that_answer_no_lease_go_to_rejects_and_stop_nothing(
    live: LivePlatform, fleet: StandInFleet, operator: Bus
) -> None:
    await fleet.add("holder", cores=64)
    other = await fleet.add("other")
    live.start_service("scheduler")
    [view] = await submit(operator)
    assert view.device == "holder"
    forged = StandInDevice(fleet.devices[other.address].address)  # the same name with another key
    await fleet.send(other, "result", result(view))
    await fleet.send(other, "result", result(view).model_copy(update={"task": str(ULID())}))
    await fleet.send(forged, "result", result(view))
    rejects = await fleet.courier.js.pull_subscribe("cw.rejects.scheduler", stream="REJECTS")
    found: list[str] = []

    async def three() -> bool:
        if len(found) < 3:
            messages = await rejects.fetch(3 - len(found), timeout=5)
            found.extend((message.headers or {})["Causeway-Reason"] for message in messages)
        return len(found) == 3

    await until(three, "three rejects")
    assert found == ["not_leased", "unknown_task", "unknown_key"]
    holder = next(device for address, device in fleet.devices.items() if address.device == "holder")
    await fleet.send(holder, "result", result(view))
    await in_state(operator, view.task, "done")


async def test_a_killed_scheduler_goes_on_with_the_same_letters(
    live: LivePlatform, fleet: StandInFleet, operator: Bus
) -> None:
    device = await fleet.add("cam-1")
    live.start_service("scheduler")
    views = await submit(operator, count=3)
    before = await fleet.mailbox("task")
    live.kill("scheduler")
    # As if the crash had come before this letter was posted.
    await fleet.courier.js.purge_stream("OUT", subject=f"cw.out.harbour.cam-1.task.{before[0].id}")
    await fleet.send(device, "result", result(views[0]))
    live.start_service("scheduler")

    async def posted() -> bool:
        return {letter.id for letter in await fleet.mailbox("task")} == {letter.id for letter in before}

    # The first result waited in IN; its letter is posted again all the same, and the device knows it.
    await until(posted, "the letters to be posted again")
    assert (await in_state(operator, views[0].task, "done")).results[0].device == "cam-1"
    for view in views[1:]:
        assert (await show(operator, view.task)).state == "leased"
    listed = await rpc.call(operator, "scheduler", "list", TaskListRequest(fleet="harbour"))
    assert {view["task"] for view in listed} == {view.task for view in views}


async def test_a_lost_race_for_the_record_is_seen_and_decided_anew(
    live: LivePlatform, fleet: StandInFleet, operator: Bus
) -> None:
    device = await fleet.add("cam-1")
    live.start_service("scheduler")
    [view] = await submit(operator)
    # Another instance of the scheduler has written meanwhile.
    other = await connect(live.state, live.settings, "scheduler")
    try:
        bucket = await other.bucket("tasks")
        entry = await bucket.get(view.task)
        record = TaskRecord.model_validate_json(entry.value or b"")
        changed = record.model_copy(update={"stale_results": 41}).model_dump_json()
        await bucket.update(view.task, changed.encode(), last=entry.revision)
    finally:
        await other.close()
    await fleet.send(device, "result", result(view))
    done = await in_state(operator, view.task, "done")
    assert done.stale_results == 41
    assert len(done.results) == 1


async def test_many_tasks_place_quickly_and_the_answer_fits(
    live: LivePlatform, fleet: StandInFleet, operator: Bus
) -> None:
    for index in range(40):
        await fleet.add(f"cam-{index:02}")
    live.start_service("scheduler")
    views = await submit(operator, count=1_000)
    assert len(views) == 1_000
    assert Counter(view.device for view in views) == {f"cam-{index:02}": 25 for index in range(40)}


async def test_bad_requests_are_refused_with_a_reason(live: LivePlatform, fleet: StandInFleet, operator: Bus) -> None:
    live.start_service("scheduler")
    with pytest.raises(RefusedError, match="a letter carries"):
        await submit(operator, inputs={f"value-{index}": "x" * 4_000 for index in range(20)})
    with pytest.raises(NotFoundError, match="there is none"):
        await show(operator, str(ULID()))
    [view] = await submit(operator, requires=Requires(devices=["nobody"]).model_dump())
    assert view.reasons[0].why == "not enrolled"
