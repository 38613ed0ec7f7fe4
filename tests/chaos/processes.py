"""Processes that are killed on purpose, started again, and watched for ends that nobody wanted."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

RESTART_S = 0.5
"""After which a process that ended by itself is started again, as a supervisor would."""
STOP_S = 15.0
_PR_SET_PDEATHSIG = 1
REPOSITORY = Path(__file__).resolve().parents[2]


class ChaosError(Exception):
    """The chaos itself could not go on; says nothing about what it tests."""


@dataclass
class Child:
    """One process, in all its lives."""

    name: str
    command: list[str]
    output: Callable[[], AbstractContextManager[BinaryIO]]
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    watcher: asyncio.Task[None] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One at a time ends or starts it."""

    @property
    def pid(self) -> int | None:
        """Of the present life."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None


class Crew:
    """All processes by name."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}
        self.own_ends: Counter[str] = Counter()
        """Processes that ended without being told to, with their exit codes."""
        self._stopping = False

    async def hire(self, child: Child) -> None:
        """Start one that is kept up from now on."""
        self.children[child.name] = child
        await self._launch(child)

    async def kill(self, name: str, down_s: float, number: signal.Signals = signal.SIGKILL) -> None:
        """End a process now and start it again after `down_s`."""
        child = self.children[name]
        async with child.turn:
            self._forget(child)
            await self._end(child, number)
            await asyncio.sleep(down_s)
            await self._launch(child)

    async def freeze(self, name: str, lasts_s: float) -> None:
        """Stop a process's clock for a while, without its knowledge."""
        process = self.children[name].process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(lasts_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)

    async def dismiss(self, *names: str) -> None:
        """End processes for good, at the same time."""
        await asyncio.gather(*(self._dismiss(self.children[name]) for name in names))

    async def close(self) -> None:
        """End all; what serves the others, which came first, last."""
        self._stopping = True
        names = list(self.children)
        await self.dismiss(*names[1:])
        await self.dismiss(*names[:1])

    async def _dismiss(self, child: Child) -> None:
        async with child.turn:
            self._forget(child)
            await self._end(child, signal.SIGTERM)

    async def _launch(self, child: Child) -> None:
        if self._stopping:
            return
        with child.output() as output:
            child.process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | child.environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        child.watcher = asyncio.create_task(self._watch(child, child.process))

    async def _watch(self, child: Child, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        self.own_ends[f"{child.name} exit {code}"] += 1
        await asyncio.sleep(RESTART_S)
        async with child.turn:
            child.watcher = None
            await self._launch(child)

    def _forget(self, child: Child) -> None:
        if child.watcher is not None:
            child.watcher.cancel()
            child.watcher = None

    async def _end(self, child: Child, number: signal.Signals) -> None:
        process = child.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        # The children of a killed one, workers above all, end with their group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _die_with_parent() -> None:
    """SIGKILL, since a frozen process obeys nothing else (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def until(probe: Callable[[], object], what: str, timeout_s: float, poll_s: float = 0.1) -> object:
    """Wait for a condition that is asked for in a thread; returns what was seen.

    Raises:
        ChaosError: after `timeout_s`, with what was last seen.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (seen := await asyncio.to_thread(probe)):
        if loop.time() > deadline:
            raise ChaosError(f"waited {timeout_s:.0f} s for {what}; last seen: {seen!r}")
        await asyncio.sleep(poll_s)
    return seen
