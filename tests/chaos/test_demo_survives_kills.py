"""The whole demo, with every process that matters killed once in the middle of training."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from causeway.sdk import Orchestrator
from services.kit.api.aggregator import JobView
from services.kit.errors import PlatformError
from tests.support.platform import eventually

KILLS = {2: "courier", 4: "aggregator", 6: "nats-server"}
"""Round after which a process is killed, and which."""


@pytest.mark.chaos
@pytest.mark.timeout(420)
def test_kill_9_of_courier_aggregator_and_bus_during_training_changes_nothing(tmp_path: Path) -> None:
    folder, report_path = tmp_path / "demo", tmp_path / "report.json"
    command = [sys.executable, "-m", "causeway.cli.main", "demo", "--folder", str(folder), "--report", str(report_path)]
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"COLUMNS": "160"})
    try:
        killed = {name: kill_after_round(folder / "platform", number, name, demo) for number, name in KILLS.items()}
        demo.wait(300)
    finally:
        demo.terminate()
        demo.wait(60)
    told = (tmp_path / "out").read_text()
    assert demo.returncode == 0, told
    report = json.loads(report_path.read_text())
    assert (report["letters_lost"], report["letters_applied_twice"], report["unmet"]) == (0, 0, [])
    assert report["rounds"] >= 8
    assert not any(is_alive(pid) for pid in killed.values())


def kill_after_round(state: Path, number: int, name: str, demo: subprocess.Popen[bytes]) -> int:
    """Wait until training is past a round, then `kill -9` the process that has this name now."""

    def past() -> bool:
        assert demo.poll() is None, f"the demo ended before round {number}"
        return any(job.state == "running" and len(job.history) >= number for job in jobs(state))

    eventually(past, f"round {number} to be closed", timeout_s=150)
    pid: int = json.loads((state / "run" / "pids.json").read_text())[name]
    os.kill(pid, signal.SIGKILL)
    return pid


def jobs(state: Path) -> list[JobView]:
    """Every job, or none while the platform is not up or recovers."""

    async def ask() -> list[JobView]:
        async with Orchestrator(state) as platform:
            return await platform.jobs()

    try:
        return asyncio.run(ask())
    except PlatformError:
        return []


def is_alive(pid: int) -> bool:
    """Whether a process of this id is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
