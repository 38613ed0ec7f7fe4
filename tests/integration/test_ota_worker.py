"""An installation with the real worker process: smoke test and inference happen in a child, which may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime.ota.install import OtaHandler
from edge_runtime.ota.installation import Pace
from edge_runtime.worker import JOBS, Worker
from tests.support.device import Bench
from tests.support.models import Made, make_release, write
from tests.support.platform import eventually

QUICK = Pace(trust_waits_s=(0,), fetch_retry_s=0, gate_poll_s=0)


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker(idle_s=60, jobs={**JOBS, "trust.target": "tests.support.jobs:target"})
    yield worker
    await worker.close()


def sign(bench: Bench, made: Made) -> Made:
    answer = {
        "sha256": made.digest,
        "length": len(made.model),
        "custom": made.custom.model_dump(mode="json"),
        "floor": 0,
        "revoked": [],
    }
    write(bench.context.folder.trust / "target.json", json.dumps(answer).encode())
    return bench.publish(made)


async def settle(handler: OtaHandler) -> None:
    async with asyncio.timeout(60):
        await handler.settled()


async def test_install_swap_and_infer_in_the_child(tmp_path: Path, worker: Worker) -> None:
    bench = Bench(tmp_path)
    handler = OtaHandler(replace(bench.context, jobs=worker), QUICK)
    for seq, factor in ((1, 2.0), (2, 3.0)):
        made = sign(bench, make_release(factor, version=f"{seq}.0.0", seq=seq))
        await handler.handle(bench.assign(made))
        await settle(handler)
        answer = await handler.infer("digits", [[1, 2, 3, 4]])
        assert answer["outputs"] == {"y": [[factor, 2 * factor, 3 * factor, 4 * factor]]}
        assert answer["sha256"] == made.digest
    assert bench.sender.steps == ["accept/ok", "confirm/ok"] * 2
    assert handler.served()[0].p50_ms is not None


async def test_a_child_killed_in_its_smoke_test_costs_one_try(tmp_path: Path, worker: Worker) -> None:
    bench = Bench(tmp_path)
    made = sign(bench, make_release(2.0))
    handler = OtaHandler(replace(bench.context, jobs=worker), QUICK)
    await handler.handle(bench.assign(made))
    state = bench.context.folder.slots / "digits" / "state.json"

    def spent() -> bool:
        return state.exists() and json.loads(json.loads(state.read_text())["state"])["tries_left"] == 3

    await asyncio.to_thread(eventually, spent, "the first try to begin")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    await settle(handler)
    assert bench.sender.steps == ["accept/ok", "confirm/ok"]


async def test_an_agent_that_stops_in_between_carries_on_at_its_next_start(tmp_path: Path, worker: Worker) -> None:
    bench = Bench(tmp_path)
    made = sign(bench, make_release(2.0))
    context = replace(bench.context, jobs=worker)
    first = OtaHandler(context, QUICK)
    await first.handle(bench.assign(made))
    await first.close()
    second = OtaHandler(context, QUICK)
    await second.resume()
    await settle(second)
    assert bench.sender.steps[-1] == "confirm/ok"
    assert second.served()[0].digest == made.digest
