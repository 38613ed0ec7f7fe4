"""The simulated devices of a bench as a whole: a few processes of `bench.herd`, and orders to them."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.herd import Plan
from bench.processes import cpu_s, read_json, running
from bench.report import BenchError, percentile, say
from bench.returning import Story

HERDS = 2
SPARE_FILES = 2_000
POLL_S = 0.05
SAY_EVERY_S = 5.0
ORDER_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """The processes that hold the devices."""

    devices: int
    processes: list[asyncio.subprocess.Process]

    async def ask(self, **order: Any) -> list[Any]:
        """Give an order to all and return their answers."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode() + b"\n")
        return [
            await read_json(process, f"the devices to do {order['do']!r}", ORDER_TIMEOUT_S)
            for process in self.processes
        ]

    async def stories(self) -> list[Story]:
        """What became of every device."""
        return [Story(*each) for part in await self.ask(do="stories") for each in part]

    async def problems(self) -> dict[str, int]:
        """Why connections were lost, and how many."""
        total: dict[str, int] = {}
        for part in await self.ask(do="progress"):
            for why, count in part["problems"].items():
                total[why] = total.get(why, 0) + count
        return total

    async def until_in_sync(self, begun: float, timeout_s: float) -> float:
        """Wait until every device is.

        Returns:
            Seconds since `begun`.

        Raises:
            BenchError: if one is not within the time.
        """
        said = begun
        while True:
            progress = await self.ask(do="progress")
            count = sum(part["in_sync"] for part in progress)
            now = time.monotonic()
            if count == self.devices:
                return max(story.in_sync or now for story in await self.stories()) - begun
            if now > begun + timeout_s:
                missing = self.devices - count
                raise BenchError(f"{missing} of {self.devices} devices not in sync after {timeout_s:.0f} s: {progress}")
            if now > said + SAY_EVERY_S:
                said = now
                say(f"  {now - begun:.0f} s: {count} in sync")
            await asyncio.sleep(POLL_S)

    def cpu_s(self) -> float:
        """Processor time of the devices."""
        return sum(cpu_s(process.pid) for process in self.processes)


@asynccontextmanager
async def fleet(plan: Plan, folder: Path) -> AsyncIterator[Fleet]:
    """The devices of a plan, ready and not yet connected."""
    async with AsyncExitStack() as stack:
        processes = []
        for number in range(HERDS):
            part = replace(plan, at_once=-(-plan.at_once // HERDS), people=plan.people[number::HERDS])
            process = await stack.enter_async_context(
                running([sys.executable, "-m", "bench.herd"], _log(folder, number), pipes=True)
            )
            assert process.stdin is not None
            process.stdin.write(part.write())
            processes.append(process)
        for number, process in enumerate(processes):
            try:
                await read_json(process, "the devices to be made", ORDER_TIMEOUT_S)
            except BenchError as error:
                raise BenchError(f"{error}; its log:\n{_log(folder, number).read_text()[-2000:]}") from error
        yield Fleet(len(plan.people), processes)


def raise_files(devices: int) -> None:
    """Let this process and those that it starts open a file per device.

    Raises:
        BenchError: if the system does not allow it.
    """
    wanted = devices + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError) as error:
        raise BenchError(
            f"hold {devices} connections: {wanted} open files are needed and {hard} allowed ({error}); raise the limit "
            f"(`ulimit -Hn {wanted}` as root, LimitNOFILE of a unit), or pass --devices {max(1, hard - SPARE_FILES)}"
        ) from error


def spread(stories: list[Story], end: str, begin: str = "first") -> dict[str, float]:
    """Seconds from one moment of each device's story to another: p50, p99 and the slowest.

    Raises:
        BenchError: if a device has no such moment.
    """
    try:
        took = [getattr(story, end) - getattr(story, begin) for story in stories]
    except TypeError as error:
        raise BenchError(f"a device was never {end}: its figures would be left out") from error
    return {
        "p50": round(percentile(took, 50), 3),
        "p99": round(percentile(took, 99), 3),
        "slowest": round(max(took), 3),
    }


def _log(folder: Path, number: int) -> Path:
    return folder / f"herd-{number}.log"
