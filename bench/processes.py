"""Child processes that end with the bench, and what they used while they ran."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import BenchError, say

REPOSITORY = Path(__file__).resolve().parents[1]
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1


@asynccontextmanager
async def running(
    command: list[str], log: Path, *, pipes: bool = False, environment: dict[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process from the repository's folder that is ended, and killed if it does not end, when the block ends."""
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if pipes else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if pipes else out,
            stderr=out,
            cwd=REPOSITORY,
            env=os.environ | (environment or {}),
            preexec_fn=_die_with_parent,
            limit=1 << 20,
        )
    try:
        yield process
    finally:
        await _end(process)


async def until(
    probe: Callable[[], Any], what: str, timeout_s: float = 30.0, process: asyncio.subprocess.Process | None = None
) -> None:
    """Wait for a condition.

    Raises:
        BenchError: after `timeout_s`, or when `process` has ended.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not probe():
        if process is not None and process.returncode is not None:
            raise BenchError(f"waited for {what}, but its process ended with {process.returncode}")
        if asyncio.get_running_loop().time() > deadline:
            raise BenchError(f"waited {timeout_s:.0f} s for {what}")
        await asyncio.sleep(POLL_S)


async def read_json(process: asyncio.subprocess.Process, what: str, timeout_s: float) -> dict[str, Any]:
    """The next line that a child writes, which must be JSON.

    Raises:
        BenchError: if it ends or says nothing in time.
    """
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            line = await process.stdout.readline()
    except TimeoutError as error:
        raise BenchError(f"waited {timeout_s:.0f} s for {what}") from error
    if not line:
        raise BenchError(f"waited for {what}, but its process ended with {await process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def free_port() -> int:
    """A port of the loopback that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process or the sum of several.

    Attributes:
        private_mb: pages that nobody else maps, the least that the process can cost.
        pss_mb: proportional set size; shared pages count in parts.
        rss_mb: resident set size, the most that it can cost.
    """

    private_mb: float
    pss_mb: float
    rss_mb: float
    processes: int


def memory(pid: int) -> Memory:
    """What a process and its children use now, from `smaps_rollup`."""
    pids = tree(pid)
    total = dict.fromkeys(("Private_Clean", "Private_Dirty", "Pss", "Rss"), 0)
    for one in pids:
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            if name in total:
                total[name] += int(rest.split()[0])
    private = total["Private_Clean"] + total["Private_Dirty"]
    private_mb, pss_mb, rss_mb = (round(kb / 1024, 1) for kb in (private, total["Pss"], total["Rss"]))
    return Memory(private_mb, pss_mb, rss_mb, len(pids))


def tree(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in task.read_text().split()]
    return found


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    others = tree(process.pid)[1:]
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        say(f"process {process.pid} did not end within {STOP_TIMEOUT_S:.0f} s and was killed")
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    try:
        await until(lambda: not any(map(_alive, others)), "the children of an ended process to end", STOP_TIMEOUT_S)
    except BenchError:
        for pid in filter(_alive, others):
            os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
