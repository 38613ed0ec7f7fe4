from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_runtime.errors import WorkerError
from edge_runtime.worker import JOBS, Worker
from tests.support.jobs import TABLE
from tests.support.platform import eventually

LIMIT_S = 20.0


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker(idle_s=60, jobs=TABLE)
    yield worker
    await worker.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie of another parent counts as ended.
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}").exists() else False


async def test_jobs_run_in_one_child_one_after_the_other(worker: Worker) -> None:
    answers = await asyncio.gather(*(worker.call("echo", {"n": n}, timeout_s=LIMIT_S) for n in range(8)))
    assert [answer["n"] for answer in answers] == list(range(8))
    assert {answer["pid"] for answer in answers} == {worker.pid}
    assert worker.pid != os.getpid()


async def test_what_a_job_prints_does_not_reach_the_protocol(worker: Worker) -> None:
    assert await worker.call("noisy", {}, timeout_s=LIMIT_S) == {"stdin": ""}
    assert (await worker.call("echo", {"n": 2}, timeout_s=LIMIT_S))["n"] == 2


async def test_the_error_of_a_job_keeps_its_reason_and_the_child_lives_on(worker: Worker) -> None:
    pid = (await worker.call("echo", {}, timeout_s=LIMIT_S))["pid"]
    with pytest.raises(WorkerError, match="it does not fit") as raised:
        await worker.call("refuse", {}, timeout_s=LIMIT_S)
    assert raised.value.reason == "too_big"
    with pytest.raises(WorkerError, match="ZeroDivisionError") as raised:
        await worker.call("bug", {"zero": 0}, timeout_s=LIMIT_S)
    assert raised.value.reason == "crashed"
    assert (await worker.call("echo", {}, timeout_s=LIMIT_S))["pid"] == pid


@pytest.mark.parametrize(
    ("job", "params", "reason"),
    [
        ("unheard", {}, "unknown_job"),
        ("die", {}, "crashed"),
        ("huge", {}, "oversized"),
        ("echo", {"text": "x" * (9 << 20)}, "oversized"),
    ],
)
async def test_bad_jobs_are_named_and_the_next_one_works(
    worker: Worker, job: str, params: dict[str, str], reason: str
) -> None:
    with pytest.raises(WorkerError, match="job") as raised:
        await worker.call(job, params, timeout_s=LIMIT_S)
    assert raised.value.reason == reason
    assert (await worker.call("echo", {"n": 1}, timeout_s=LIMIT_S))["n"] == 1


async def test_a_job_beyond_its_limit_is_killed(worker: Worker, tmp_path: Path) -> None:
    started = tmp_path / "started"
    with pytest.raises(WorkerError, match="not done within 1 s") as raised:
        await worker.call("hang", {"started": str(started)}, timeout_s=1)
    assert raised.value.reason == "timeout"
    eventually(lambda: not started.exists() or not alive(int(started.read_text())), "the child to be gone")
    assert (await worker.call("echo", {"n": 1}, timeout_s=LIMIT_S))["n"] == 1


async def test_a_cancelled_call_leaves_no_work_behind(worker: Worker, tmp_path: Path) -> None:
    started = tmp_path / "started"
    call = asyncio.create_task(worker.call("hang", {"started": str(started)}, timeout_s=LIMIT_S))
    await asyncio.to_thread(eventually, lambda: started.exists() and started.read_text(), "the job to start")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not alive(int(started.read_text()))


async def test_close_ends_a_job_that_runs(worker: Worker, tmp_path: Path) -> None:
    started = tmp_path / "started"
    call = asyncio.create_task(worker.call("hang", {"started": str(started)}, timeout_s=LIMIT_S))
    await asyncio.to_thread(eventually, lambda: started.exists() and started.read_text(), "the job to start")
    await worker.close()
    with pytest.raises(WorkerError, match="ended with -9"):
        await call
    with pytest.raises(WorkerError, match="stopping"):
        await worker.call("echo", {}, timeout_s=LIMIT_S)


async def test_an_idle_child_ends_and_comes_back_on_demand() -> None:
    worker = Worker(idle_s=0.1, jobs=TABLE)
    first = (await worker.call("echo", {}, timeout_s=LIMIT_S))["pid"]
    await asyncio.to_thread(eventually, lambda: worker.pid is None, "the idle child to end")
    assert not alive(first)
    assert (await worker.call("echo", {}, timeout_s=LIMIT_S))["pid"] != first
    await worker.close()
    assert worker.pid is None


def test_no_orphan_survives_an_agent_that_is_killed(tmp_path: Path) -> None:
    started = tmp_path / "started"
    agent = (
        "import asyncio\n"
        "from edge_runtime.worker import Worker\n"
        "from tests.support.jobs import TABLE\n"
        f"asyncio.run(Worker(60, TABLE).call('hang', {{'started': {str(started)!r}}}, timeout_s=600))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", agent])
    eventually(lambda: started.exists() and started.read_text(), "the job to start")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    pid = int(started.read_text())
    eventually(lambda: not alive(pid), "the worker to end after its agent")


def test_the_client_loads_nothing_heavy() -> None:
    code = (
        "import sys, edge_runtime.worker\n"
        "heavy = {'numpy', 'onnxruntime', 'tuf', 'zstandard', 'securesystemslib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(":" in target for target in JOBS.values())
