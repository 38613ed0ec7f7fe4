"""The agent's end of a worker: starts the child on demand, gives it one job at a time, ends it when idle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from typing import Any

from edge_runtime.errors import WorkerError
from edge_runtime.worker.jobs import JOBS, MAX_LINE_BYTES

END_TIMEOUT_S = 2.0
"""How long a child whose input was closed may take to end before it is killed."""


class Worker:
    """Implements `ports.Jobs` with one child process at most.

    Calls wait for each other. A call that takes too long, or whose caller is cancelled, kills the child; the next call
    starts another. The child ends itself when this process ends, however that happens.
    """

    def __init__(self, idle_s: float, jobs: Mapping[str, str] = JOBS) -> None:
        """`jobs` maps names to `module:function`."""
        self._idle_s = idle_s
        self._jobs = jobs
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._requests = 0
        self._idle: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._process.pid if self._process is not None else None

    async def call(self, job: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Run a job; see `ports.Jobs`. The limit counts from when the job's turn comes.

        Raises:
            WorkerError: the job's own reason, or `crashed`, `timeout`, `oversized`, `unknown_job`.
        """
        target = self._jobs.get(job)
        if target is None:
            known = ", ".join(sorted(self._jobs))
            raise WorkerError(f"run job {job!r}: there is no such job; known are {known}", reason="unknown_job")
        async with self._lock:
            if self._closed:
                raise WorkerError(f"run job {job}: this agent is stopping", reason="crashed")
            self._stop_idling()
            try:
                async with asyncio.timeout(timeout_s):
                    reply = await self._exchange(job, target, params)
            except TimeoutError as error:
                raise WorkerError(f"run job {job}: not done within {timeout_s:g} s, ended", reason="timeout") from error
            finally:
                if self._process is not None:
                    self._idle = asyncio.create_task(self._end_when_idle())
        if "error" in reply:
            raise WorkerError(str(reply["error"]["message"]), reason=str(reply["error"]["reason"]))
        result: dict[str, Any] = reply["ok"]
        return result

    async def close(self) -> None:
        """End the child and take no more calls; a job that runs ends with it as `crashed`."""
        self._closed = True
        if self._process is not None and self._lock.locked():
            _kill(self._process)
        async with self._lock:
            self._stop_idling()
            await self._end()

    async def _exchange(self, job: str, target: str, params: dict[str, Any]) -> dict[str, Any]:
        self._requests += 1
        number = self._requests
        line = json.dumps({"id": number, "target": target, "params": params}).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise WorkerError(
                f"run job {job}: parameters of {len(line)} bytes exceed {MAX_LINE_BYTES}: pass large data by file",
                reason="oversized",
            )
        finished = False
        try:
            process = await self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line)
            await process.stdin.drain()
            reply: dict[str, Any] = json.loads(await process.stdout.readuntil(b"\n"))
            if reply.get("id") != number:
                raise WorkerError(f"run job {job}: the worker answered another request", reason="crashed")
            finished = True
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            code = await self._killed()
            raise WorkerError(
                f"run job {job}: the worker ended with {code} ({type(error).__name__}); its output has the cause",
                reason="crashed",
            ) from error
        finally:
            # Also when cancelled: a child that still works on an abandoned job is of no use to the next.
            if not finished:
                await self._killed()
        return reply

    async def _started(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        # The child finds the code that this process found, wherever it was started.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge_runtime.worker"),
            stdin=PIPE,
            stdout=PIPE,
            limit=MAX_LINE_BYTES,
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        )
        return self._process

    async def _end_when_idle(self) -> None:
        await asyncio.sleep(self._idle_s)
        async with self._lock:
            self._idle = None
            await self._end()

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await process.wait()
        await self._killed()

    async def _killed(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        _kill(process)
        return await process.wait()


def _kill(process: Process) -> None:
    # Process.kill() may reap the child itself, and then asyncio's watcher never learns its exit code.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
