"""A task from the operator to a real agent and back: placed, signed, run in the worker, answered, applied."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causeway.cli.task import app
from services.kit.api.scheduler import SubmitRequest, TaskRequest, TaskView
from tests.support.edge import FLEET, EdgeProcess, ask, show
from tests.support.platform import LivePlatform, eventually

EXTRA = """
[limits]
min_battery_percent = 50

[runners]
"add@1" = "tests.support.runners:add"
"sleep@1" = "tests.support.runners:sleep"
"""


@pytest.fixture
def platform(live: LivePlatform) -> LivePlatform:
    live.start_services("registry", "courier", "depot", "scheduler")
    return live


@pytest.fixture
def device(platform: LivePlatform, tmp_path: Path) -> Iterator[EdgeProcess]:
    device = EdgeProcess.make(tmp_path / "cam-1", "cam-1", EXTRA)
    device.environment["BATTERY"] = "80"
    device.admit(platform)
    device.start()
    eventually(lambda: show(platform, device.address)["heartbeat"], "a heartbeat")
    yield device
    if device.process is not None:
        device.stop()


def submit(live: LivePlatform, **changes: Any) -> TaskView:
    values: dict[str, Any] = {"kind": "user", "runner": "add@1", "fleet": FLEET, "inputs": {"left": 1, "right": 2}}
    [view] = ask(live, "scheduler", "submit", SubmitRequest.model_validate(values | changes))
    return TaskView.model_validate(view)


def over(live: LivePlatform, task: str) -> TaskView:
    def probe() -> TaskView | None:
        view = TaskView.model_validate(ask(live, "scheduler", "show", TaskRequest(task=task)))
        return view if view.state in {"done", "failed"} else None

    found = eventually(probe, f"task {task} to be over", timeout_s=40)
    assert found is not None
    return found


def test_a_task_comes_back_with_its_result_and_survives_a_killed_agent(
    platform: LivePlatform, device: EdgeProcess, tmp_path: Path
) -> None:
    done = over(platform, submit(platform).task)
    assert (done.state, done.results[0].output["sum"]) == ("done", 3.0)

    profile = over(platform, submit(platform, runner="profile@1", inputs={}).task)
    assert profile.results[0].output["gflops"] > 0

    # The agent is killed while the task runs, so the next agent runs it again; there is one result all the same.
    started = tmp_path / "started"
    sleeping = submit(platform, runner="sleep@1", inputs={"started": str(started)}, limits={"wall_s": 3}, max_terms=1)
    eventually(started.exists, "the runner to be started")
    eventually(lambda: show(platform, device.address)["heartbeat"]["tasks"] == [f"{sleeping.task}:1"], "the mark")
    device.kill()
    device.start()
    failed = over(platform, sleeping.task)
    assert (failed.state, failed.results[0].reason) == ("failed", "timeout")
    sent = device.rows(f"SELECT id FROM letters WHERE kind = 'result' AND data LIKE '%{sleeping.task}%'")
    assert [row[0] for row in sent] == [failed.results[0].letter]


def test_the_owners_limit_is_stricter_than_the_platforms_and_wins(platform: LivePlatform, device: EdgeProcess) -> None:
    device.stop()
    device.environment["BATTERY"] = "40"
    device.start()
    eventually(lambda: show(platform, device.address)["heartbeat"]["battery_percent"] == 40, "the new reading")
    before = time.monotonic()
    failed = over(platform, submit(platform, max_terms=1).task)
    assert time.monotonic() - before < 30
    assert failed.state == "failed"
    assert (failed.results[0].outcome, failed.results[0].reason) == ("refused", "battery")


def test_the_command_line_submits_waits_and_shows_why(platform: LivePlatform, device: EdgeProcess) -> None:
    def causeway(*arguments: str, code: int = 0) -> str:
        ended = CliRunner().invoke(app, [*arguments, "--state", str(platform.state.root)], env={"COLUMNS": "200"})
        assert ended.exit_code == code, ended.output
        return ended.output

    shown = causeway("submit", "add@1", "-i", "left=1", "-i", "right=2", "-n", "2", "--wait")
    assert "2 tasks: cam-1 2" in shown
    assert "cam-1 *" in shown
    assert "sum 3.0" in shown
    views = json.loads(causeway("submit", "unheard-of@1", "--json"))
    assert views[0]["reasons"][0]["why"] == "runner unheard-of@1 is not installed"
    listed = json.loads(causeway("list", "--json"))
    assert [view["state"] for view in listed].count("done") == 2
    assert "runner unheard-of@1 is not installed" in causeway("show", views[0]["task"])
    causeway("submit", "no version", code=2)
    causeway("submit", "add@1", "-i", "novalue", code=2)
    causeway("submit", "add@1", "--kind", "nonsense", code=2)
    causeway("show", "01J00000000000000000000000", code=3)
