"""The worker job `task` with real processes: what a runner may use, and what becomes of one that takes more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edge_runtime.ota.slots import Slots
from edge_runtime.ota.state import SlotState
from edge_runtime.tasks.execute import run
from schemas.scheduler import Result
from tests.support.models import make_release, write
from tests.support.platform import eventually

TASK = "01J00000000000000000000000"


def execute(runner: str, **changes: Any) -> Result:
    target = runner if ":" in runner else f"tests.support.runners:{runner}"
    params: dict[str, Any] = {
        "target": target,
        "inputs": {},
        "cpu_s": 20.0,
        "ram_mb": 256,
        "wall_s": 30.0,
        "max_cpu_percent": 100.0,
        "datasets": {},
        "slots": "slots",
    }
    return Result.model_validate(run(params | changes) | {"task": TASK, "term": 1})


def test_a_runner_answers_from_a_process_of_its_own_at_low_priority() -> None:
    done = execute("add", inputs={"left": 1, "right": 2.5})
    assert done.outcome == "ok"
    assert done.output["sum"] == 3.5
    assert done.output["pid"] != os.getpid()
    assert done.output["nice"] >= 10
    assert done.cpu_s > 0
    assert 0 < done.took_s < 30


@pytest.mark.parametrize(
    ("runner", "changes", "reason"),
    [
        ("refuse", {}, "no_sensor"),
        ("bug", {"inputs": {"zero": 0}}, "runner_error"),
        ("leave", {}, "runner_error"),
        ("die", {}, "crashed"),
        ("nothing", {}, "bad_output"),
        ("chatter", {}, "bad_output"),
        ("no_such_function", {}, "no_runner"),
        ("tests.support.no_such_module:run", {}, "no_runner"),
        ("spin", {"cpu_s": 0.3}, "cpu_limit"),
        ("spin_in_child", {"cpu_s": 0.3}, "cpu_limit"),
        ("eat", {"ram_mb": 64}, "memory_limit"),
        ("swallow", {"ram_mb": 64}, "memory_limit"),
        ("spin", {"wall_s": 0.3}, "timeout"),
    ],
)
def test_a_task_that_cannot_or_takes_too_much_fails_with_the_reason(
    runner: str, changes: dict[str, Any], reason: str
) -> None:
    before = psutil.Process().children(recursive=True)  # another test's, as the helper of multiprocessing
    done = execute(runner, **changes)
    assert (done.outcome, done.reason) == ("failed", reason)
    assert done.message
    assert set(psutil.Process().children(recursive=True)) <= set(before)


def test_the_owners_share_of_the_processor_is_kept_by_pausing() -> None:
    share = 40.0 / (os.cpu_count() or 1)
    done = execute("busy", max_cpu_percent=share)
    assert done.outcome == "ok"
    assert done.cpu_s / done.took_s < 0.7


def test_profile_measures_this_machine_in_a_short_time() -> None:
    done = execute("edge_runtime.tasks.profile:run")
    assert done.outcome == "ok", done.message
    assert done.output["gflops"] > 0.05
    assert done.output["sha256_mb_s"] > 1
    assert done.output["cpu_s"] < 3


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    """`digits` 1.0.0 is installed: scores are twice the input."""
    made = make_release(2.0)
    slots = Slots(tmp_path / "slots")
    slots.stage("digits", made.digest, made.custom, write(tmp_path / "model", made.model), None)
    slots.store(SlotState(slot="digits", digest=made.digest))
    return slots


def dataset(path: Path, right: int, wrong: int) -> str:
    x = np.eye(4, dtype=np.float32)[np.arange(right + wrong) % 4]
    y = (np.arange(right + wrong) + (np.arange(right + wrong) >= right)) % 4
    np.savez(path, x=x, y=y)
    return str(path)


def evaluate(slots: Slots, path: str, **inputs: str) -> Result:
    named = {"model": "digits", "dataset": "test"} | inputs
    return execute("edge_runtime.tasks.evaluate:run", inputs=named, datasets={"test": path}, slots=str(slots.root))


def test_evaluate_tells_the_accuracy_of_the_active_model(slots: Slots, tmp_path: Path) -> None:
    done = evaluate(slots, dataset(tmp_path / "test.npz", 300, 100))
    assert done.outcome == "ok", done.message
    assert done.output["accuracy"] == 0.75
    assert done.output["samples"] == 400
    assert done.output["sha256"] == make_release(2.0).digest
    assert done.output["version"] == "1.0.0"
    assert done.output["p50_ms"] > 0


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"model": "yolo"}, "no_model"),
        ({"model": "../digits"}, "bad_inputs"),
        ({"dataset": "other"}, "no_dataset"),
        ({"dataset": ""}, "bad_inputs"),
    ],
)
def test_evaluate_says_what_is_missing(slots: Slots, tmp_path: Path, inputs: dict[str, str], reason: str) -> None:
    done = evaluate(slots, dataset(tmp_path / "test.npz", 1, 0), **inputs)
    assert (done.outcome, done.reason) == ("failed", reason)


def test_evaluate_refuses_a_dataset_that_is_none_and_a_model_that_was_changed(slots: Slots, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    assert evaluate(slots, str(tmp_path / "bad.npz")).reason == "bad_dataset"
    slots.file("digits", make_release(2.0).digest).write_bytes(b"changed")
    assert evaluate(slots, dataset(tmp_path / "test.npz", 1, 0)).reason == "wrong_digest"


def test_a_runner_ends_with_the_worker_that_was_killed(tmp_path: Path) -> None:
    started = tmp_path / "started"
    # Paused nearly always, so that the kernel has to end a stopped process.
    params = {
        "target": "tests.support.runners:sleep",
        "inputs": {"started": str(started)},
        "cpu_s": 60,
        "ram_mb": 256,
        "wall_s": 60,
        "max_cpu_percent": 0.01,
        "datasets": {},
        "slots": "",
    }
    program = f"from edge_runtime.tasks.execute import run; run({params!r})"
    worker = subprocess.Popen([sys.executable, "-c", program])
    try:
        child = eventually(lambda: psutil.Process(worker.pid).children(), "the runner to be started")[0]
        eventually(lambda: child.status() == psutil.STATUS_STOPPED, "the runner to be paused")
    finally:
        worker.kill()
        worker.wait(10)
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the runner to end")
