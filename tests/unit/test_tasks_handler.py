"""Task letters on the device: the owner's limits, one result per term whatever crashes, cancelling."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from ulid import ULID

from edge_runtime.errors import OutboxError, WorkerError
from edge_runtime.settings import EdgeSettings, OwnerLimits
from edge_runtime.tasks.handler import TaskHandler
from edge_runtime.tasks.runners import known_runners
from edge_runtime.worker import Worker
from schemas.events import DownLetter, Message
from schemas.registry import Heartbeat
from schemas.scheduler import Cancel, Result, Task
from tests.support.device import NOW, PLATFORM, SESSION, Bench, RecordedSender
from tests.support.platform import eventually
from tests.support.runners import TABLE

OK = {"outcome": "ok", "output": {"sum": 3.0}, "took_s": 0.1, "cpu_s": 0.1}


@dataclass
class Desk:
    """Heavy jobs as the test wants them: an answer, an error, or a wait until the test lets go."""

    answer: dict[str, Any] | Exception = field(default_factory=lambda: dict(OK))
    calls: list[dict[str, Any]] = field(default_factory=list)
    waits: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, job: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert job == "task"
        self.calls.append(params)
        self.begun.set()
        if self.waits:
            await self.release.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, settings=EdgeSettings.model_validate({"runners": TABLE}))


def make(bench: Bench, desk: Any) -> TaskHandler:
    return TaskHandler(replace(bench.context, heavy_jobs=desk))


def letter(data: Message, kind: str = "task") -> DownLetter[Any]:
    name = str(ULID())
    return DownLetter[Any](
        id=name,
        source="/services/scheduler",
        type=f"causeway.{kind}.v1",
        time=NOW,
        platform=PLATFORM,
        recipient="/fleets/harbour/devices/cam-1",
        expires=NOW + timedelta(minutes=10),
        generation=1,
        revision=1,
        slot=name,
        data=data,
    )


def task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "task": str(ULID()),
        "term": 1,
        "kind": "user",
        "runner": "add@1",
        "inputs": {"left": 1, "right": 2},
        "deadline": NOW + timedelta(minutes=10),
    }
    return Task.model_validate(values | changes)


def results(bench: Bench) -> list[Result]:
    return [data for kind, data in bench.sender.letters if kind == "result" and isinstance(data, Result)]


async def test_a_task_is_run_by_its_installed_runner_and_answered(bench: Bench) -> None:
    desk = Desk()
    handler, given = make(bench, desk), task(limits={"cpu_s": 5, "ram_mb": 100, "wall_s": 7})
    await handler.handle(letter(given))
    [answer] = results(bench)
    assert (answer.task, answer.term, answer.outcome, answer.output) == (given.task, 1, "ok", {"sum": 3.0})
    [params] = desk.calls
    assert params["target"] == "tests.support.runners:add"
    assert (params["cpu_s"], params["ram_mb"], params["wall_s"]) == (5, 100, 7)
    assert handler.marks() == []


async def test_a_task_may_not_run_beyond_its_deadline(bench: Bench) -> None:
    desk = Desk()
    await make(bench, desk).handle(letter(task(deadline=NOW + timedelta(seconds=3), limits={"wall_s": 600})))
    assert desk.calls[0]["wall_s"] == 3


@pytest.mark.parametrize(
    ("reading", "limits", "changes", "reason"),
    [
        ({"battery_percent": 0.0}, {}, {}, "battery"),
        ({"battery_percent": 19.0, "charging": True, "discharging": True}, {}, {}, "battery"),
        ({"temp_c": 71.0}, {}, {}, "heat"),
        ({"ram_free_mb": 0}, {}, {}, "memory"),
        ({}, {"tasks": False}, {}, "owner_limits"),
        ({}, {}, {"runner": "unheard-of@1"}, "no_runner"),
        ({}, {}, {"deadline": NOW}, "too_late"),
    ],
)
async def test_the_owners_limits_refuse_with_the_reason(
    tmp_path: Path, reading: dict[str, Any], limits: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    settings = EdgeSettings(runners=TABLE, limits=OwnerLimits.model_validate(limits))
    bench, desk = Bench(tmp_path, settings=settings), Desk()
    bench.body.doing = Heartbeat.model_validate({"session": SESSION, "uptime_s": 1} | reading)
    await make(bench, desk).handle(letter(task(**changes)))
    [answer] = results(bench)
    assert (answer.outcome, answer.reason) == ("refused", reason)
    assert answer.message
    assert desk.calls == []


@pytest.mark.parametrize("reading", [{}, {"battery_percent": 5.0, "charging": True}, {"battery_percent": 20.0}])
async def test_an_absent_reading_or_a_charger_holds_nothing_back(bench: Bench, reading: dict[str, Any]) -> None:
    bench.body.doing = Heartbeat.model_validate({"session": SESSION, "uptime_s": 1} | reading)
    await make(bench, Desk()).handle(letter(task()))
    assert results(bench)[0].outcome == "ok"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (WorkerError("the worker ended", reason="crashed"), "crashed"),
        ({"outcome": "failed", "reason": "timeout", "message": "late", "took_s": 1, "cpu_s": 1}, "timeout"),
        (OK | {"output": {"bad name!": 1}}, "bad_output"),
        (OK | {"output": {"list": [1]}}, "bad_output"),
        (OK | {"output": {"text": "x" * 5_000}}, "bad_output"),
    ],
)
async def test_what_goes_wrong_is_a_failed_result(bench: Bench, answer: Any, reason: str) -> None:
    await make(bench, Desk(answer)).handle(letter(task()))
    [told] = results(bench)
    assert (told.outcome, told.reason) == ("failed", reason)


async def test_the_same_term_has_one_result_whatever_letter_brings_it(bench: Bench) -> None:
    desk, given = Desk(), task()
    handler = make(bench, desk)
    for _ in range(3):
        await handler.handle(letter(given))
    await handler.handle(letter(given.model_copy(update={"term": 2})))
    handler.close()
    again = make(bench, desk)
    await again.resume()
    await again.handle(letter(given))
    assert [answer.term for answer in results(bench)] == [1, 2]
    assert len(desk.calls) == 2


class FullSender(RecordedSender):
    """An outbox on a full disk."""

    def send(self, kind: str, data: Message, *, lane: str | None = None, letter_id: str | None = None) -> str:
        raise OutboxError("store a letter: the disk is full", reason="disk_full")


async def test_a_result_that_the_outbox_refused_is_sent_later_without_running_again(bench: Bench) -> None:
    desk, given, sender = Desk(), task(), bench.sender
    bench.sender = FullSender()
    handler = make(bench, desk)
    with pytest.raises(OutboxError):
        await handler.handle(letter(given))
    handler.close()
    bench.sender = sender
    handler = make(bench, desk)
    await handler.resume()
    await handler.handle(letter(given))
    assert [answer.outcome for answer in results(bench)] == ["ok"]
    assert len(desk.calls) == 1


class ForgetfulHandler(TaskHandler):
    """Dies after the outbox took a result and before that was noted."""

    def _send(self, line: Any) -> None:
        self._context.sender.send("result", line.result, letter_id=line.letter)
        raise KeyError("power cut")


async def test_a_crash_after_sending_does_not_send_a_second_letter(bench: Bench) -> None:
    desk, given = Desk(), task()
    handler = ForgetfulHandler(replace(bench.context, heavy_jobs=desk))
    with pytest.raises(KeyError):
        await handler.handle(letter(given))
    handler.close()
    handler = make(bench, desk)
    await handler.resume()
    await handler.handle(letter(given))
    assert len(results(bench)) == 1
    assert len(desk.calls) == 1


async def test_an_agent_that_stopped_while_a_task_ran_runs_it_again_and_answers_once(bench: Bench) -> None:
    desk, given = Desk(waits=True), task()
    handler = make(bench, desk)
    running = asyncio.create_task(handler.handle(letter(given)))
    await desk.begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    handler.close()
    assert results(bench) == []
    await make(bench, Desk()).handle(letter(given))
    assert [answer.outcome for answer in results(bench)] == ["ok"]


async def test_one_task_runs_at_a_time_and_all_in_hand_are_marked(bench: Bench) -> None:
    desk = Desk(waits=True)
    handler, given = make(bench, desk), [task() for _ in range(3)]
    running = [asyncio.create_task(handler.handle(letter(one))) for one in given]
    await desk.begun.wait()
    assert handler.marks() == [f"{one.task}:1" for one in given]
    assert len(desk.calls) == 1
    desk.release.set()
    await asyncio.gather(*running)
    assert len(results(bench)) == 3
    assert handler.marks() == []


async def test_a_running_task_is_cancelled_and_says_so(bench: Bench) -> None:
    desk = Desk(waits=True)
    handler, given = make(bench, desk), task()
    running = asyncio.create_task(handler.handle(letter(given)))
    await desk.begun.wait()
    await handler.handle(letter(Cancel(task=given.task, term=1), "cancel"))
    await running
    [answer] = results(bench)
    assert (answer.outcome, answer.reason) == ("failed", "cancelled")


async def test_a_cancel_that_overtakes_its_task_holds(bench: Bench) -> None:
    desk, given = Desk(), task()
    handler = make(bench, desk)
    await handler.handle(letter(Cancel(task=given.task, term=1), "cancel"))
    await handler.handle(letter(Cancel(job="digits"), "cancel"))
    assert results(bench) == []
    await handler.handle(letter(given))
    [answer] = results(bench)
    assert (answer.outcome, answer.reason) == ("refused", "cancelled")
    assert desk.calls == []


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker(30)
    yield worker
    await worker.close()


async def test_through_the_real_worker(bench: Bench, worker: Worker) -> None:
    handler = make(bench, worker)
    await handler.handle(letter(task()))
    await handler.handle(letter(task(runner="nested@1")))
    await handler.handle(letter(task(runner="die@1")))
    await handler.handle(letter(task(runner="profile@1")))
    outcomes = [(answer.outcome, answer.reason) for answer in results(bench)]
    assert outcomes == [("ok", None), ("failed", "bad_output"), ("failed", "crashed"), ("ok", None)]
    assert results(bench)[0].output["sum"] == 3.0


async def test_cancelling_ends_the_runner_too(bench: Bench, worker: Worker, tmp_path: Path) -> None:
    handler, started = make(bench, worker), tmp_path / "started"
    given = task(runner="sleep@1", inputs={"started": str(started)})
    running = asyncio.create_task(handler.handle(letter(given)))
    await asyncio.to_thread(eventually, lambda: started.exists() and started.read_text(), "the runner to be started")
    await handler.handle(letter(Cancel(task=given.task), "cancel"))
    await running
    assert results(bench)[0].reason == "cancelled"
    runner = int(started.read_text())
    await asyncio.to_thread(eventually, lambda: not _lives(runner), "the runner to end")


def test_the_resident_part_loads_no_numpy() -> None:
    program = (
        "import sys, edge_runtime.tasks.handler as h; h.table({});"
        "print([m for m in ('numpy', 'onnxruntime', 'psutil') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_known_runners_are_the_built_in_ones_and_the_owners() -> None:
    assert known_runners({"mine@2": "package:run"}) == ["evaluate@1", "mine@2", "profile@1"]
