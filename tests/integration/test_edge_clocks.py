"""A device whose clock stands in 1970 or in 2040, and jumps while it works, against the real platform."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge_runtime.agent import Agent
from edge_runtime.settings import load_settings
from schemas.events import Untyped
from schemas.registry import Twin
from tests.integration.test_edge_letters import letters_in
from tests.support.courier_world import post
from tests.support.edge import EdgeProcess
from tests.support.platform import LivePlatform, eventually, until

YEAR_S = 365.25 * 86_400
TO_1970, TO_2040 = -time.time() + 3_600, 14 * YEAR_S


class Clock:
    """The system's, as a device has it."""

    def __init__(self, shift_s: float) -> None:
        self.shift_s = shift_s

    def __call__(self) -> float:
        return time.time() + self.shift_s


@pytest.fixture
def device(platform: LivePlatform, tmp_path: Path) -> EdgeProcess:
    return EdgeProcess.make(tmp_path / "device", "cam-1").admit(platform)


@asynccontextmanager
async def running(device: EdgeProcess, clock: Callable[[], float]) -> AsyncIterator[Agent]:
    """An agent in this process, with a clock that nobody synchronises."""
    agent = Agent(load_settings(device.folder / "edge.toml"), clock=clock, synchronised=lambda: False)
    started = asyncio.Event()
    work = asyncio.create_task(agent.run(started.set))
    try:
        await until(lambda: started.is_set() or work.done(), "the agent to start")
        assert started.is_set(), "the agent ended before it had started"
        yield agent
    finally:
        agent.stop()
        await work


async def settle(probe: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(eventually, probe, what, 30)


def receipted(device: EdgeProcess) -> int:
    rows = device.rows("SELECT mark FROM lanes WHERE lane = 'normal'")
    return rows[0][0] if rows else 0


@pytest.mark.parametrize("shift_s", [TO_1970, TO_2040], ids=["1970", "2040"])
async def test_letters_pass_both_ways_whatever_the_clock_says_and_however_it_jumps(live, device, shift_s) -> None:
    clock = Clock(shift_s)
    async with running(device, clock) as agent:
        agent.send("sample", Untyped(number=0))  # stamped before anything is known of the time
        for turn, shift in enumerate([shift_s, TO_2040, TO_1970, 0.0, shift_s], 1):
            clock.shift_s = shift
            agent.send("sample", Untyped(number=turn))
            wish = Twin(heartbeat_s=100 + turn)
            [letter] = await asyncio.to_thread(post, live, device, "config", wish, slot="-", revision=1_000 + turn)
            await settle(lambda n=turn: receipted(device) == n + 1, f"the receipt of letter {turn}")
            handled = f"SELECT 1 FROM letters WHERE id = '{letter}' AND state = 'handled'"
            await settle(lambda query=handled: device.rows(query, "inbox.db"), f"config {turn} to be handled")
        status = agent._chores._house.vitals.status({})
    found = await asyncio.to_thread(letters_in, live, "sample")
    assert [letter.data.number for letter in found] == list(range(6))
    soon = datetime.now(UTC) + timedelta(minutes=1)
    assert all(letter.time < soon < letter.expires for letter in found)
    # Once the platform has answered, letters carry the right time.
    assert all(letter.time > soon - timedelta(minutes=10) for letter in found[2:])
    assert status["clock"] == "known"
    assert status["refusals"] == {}
    assert not [p for p in status["problems"] if p], status["problems"]


async def test_a_device_that_wakes_up_in_2040_after_a_life_in_1970_takes_up_where_it_was(live, device) -> None:
    for turn, shift in enumerate((TO_1970, TO_2040, TO_1970), 1):
        async with running(device, Clock(shift)) as agent:
            agent.send("sample", Untyped(number=turn))
            await settle(lambda n=turn: receipted(device) == n, f"the receipt of life {turn}")
    found = await asyncio.to_thread(letters_in, live, "sample")
    assert [letter.data.number for letter in found] == [1, 2, 3]
