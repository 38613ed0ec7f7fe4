"""Answers task letters: checks the owner's limits, runs the installed runner in the worker, sends one result per term.

Imports no numpy: it stays resident.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from pydantic import ValidationError

from edge_runtime.conduct.policy import Allowance, may_work
from edge_runtime.errors import EdgeError
from edge_runtime.ports import Context
from edge_runtime.tasks.ledger import Ledger, Line
from edge_runtime.tasks.runners import table
from schemas.events import DownLetter
from schemas.scheduler import Cancel, Result, Task

MAX_MARKS = 32
_JOB_GRACE_S = 15.0
"""For the worker to start and to end a task that exceeds its limits."""
_MAX_LINE = 512

log = logging.getLogger(__name__)


class TaskHandler:
    """The letters of kinds task and cancel. One task runs at a time; the others wait in the inbox."""

    kinds = frozenset({"task", "cancel"})

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ledger = Ledger(context.folder.root / "tasks.db", lambda: context.clock.now().timestamp())
        self._turn = asyncio.Lock()
        self._active: dict[tuple[str, int], asyncio.Task[Result]] = {}

    def marks(self) -> list[str]:
        """`task:term` of the tasks in hand, for the heartbeat."""
        return [f"{task}:{term}" for task, term in self._active][:MAX_MARKS]

    async def resume(self) -> None:
        """Send what a crash kept from the outbox. Tasks that ran then are given again by the inbox."""
        self._ledger.trim()
        for line in self._ledger.unsent():
            self._send(line)

    async def handle(self, letter: DownLetter[Any]) -> None:
        """Do a task, or stop one; the same letter again has no second effect.

        Raises:
            OutboxError: if the disk does not take the result; it is sent at the next start.
        """
        data = letter.data
        if isinstance(data, Task):
            await self._perform(data)
        elif isinstance(data, Cancel) and data.task is not None:
            self._cancel(data.task, data.term)

    def close(self) -> None:
        """Close the ledger; tasks in hand must have ended."""
        self._ledger.close()

    async def _perform(self, task: Task) -> None:
        key = (task.task, task.term)
        line = self._ledger.open(*key)
        if line.sent or key in self._active:
            return
        if line.result is None:
            running = self._active[key] = asyncio.create_task(self._result(task, line), name=f"task {task.task}")
            try:
                line = self._ledger.finish(line, await _outcome(running, task))
            finally:
                del self._active[key]
        self._send(line)

    def _send(self, line: Line) -> None:
        assert line.result is not None
        self._context.sender.send("result", line.result, letter_id=line.letter)
        self._ledger.sent(line)

    def _cancel(self, task: str, term: int | None) -> None:
        if term is not None:
            self._ledger.cancel(task, term)
        for (name, number), running in self._active.items():
            if name == task and term in {None, number}:
                running.cancel()

    async def _result(self, task: Task, line: Line) -> Result:
        async with self._turn:
            if line.cancelled:
                return _without(task, "refused", "cancelled", "cancelled before it began")
            refusal = self._refusal(task)
            if refusal is not None:
                log.info("task %s refused: %s", task.task, refusal.reason)
                return _without(task, "refused", refusal.reason or "refused", refusal.message)
            return await self._run(task)

    def _refusal(self, task: Task) -> Allowance | None:
        context = self._context
        if task.deadline <= context.clock.now():
            return Allowance(allowed=False, reason="too_late", message=f"the deadline was {task.deadline.isoformat()}")
        if task.runner not in table(context.settings.runners):
            return Allowance(
                allowed=False, reason="no_runner", message=f"runner {task.runner} is not installed on this device"
            )
        reading = context.readings.heartbeat()
        allowance = may_work(context.limits, reading, training=False)
        if not allowance.allowed:
            return allowance
        if reading.ram_free_mb is not None and reading.ram_free_mb < task.limits.ram_mb:
            message = f"{reading.ram_free_mb} MB of memory are free, the task may use {task.limits.ram_mb}"
            return Allowance(allowed=False, reason="memory", message=message)
        return None

    async def _run(self, task: Task) -> Result:
        context = self._context
        left_s = max(0.1, (task.deadline - context.clock.now()).total_seconds())
        wall_s = min(task.limits.wall_s, left_s)
        params = {
            "runner": task.runner,
            "target": table(context.settings.runners)[task.runner],
            "inputs": dict(task.inputs),
            "cpu_s": task.limits.cpu_s,
            "ram_mb": task.limits.ram_mb,
            "wall_s": wall_s,
            "max_cpu_percent": context.limits.max_cpu_percent,
            "datasets": {name: str(path) for name, path in context.settings.datasets.items()},
            "slots": str(context.folder.slots),
        }
        try:
            done = await context.heavy_jobs.call("task", params, timeout_s=wall_s + _JOB_GRACE_S)
            return Result.model_validate(done | {"task": task.task, "term": task.term})
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]
            where = ".".join(map(str, problem["loc"]))
            return _without(
                task, "failed", "bad_output", f"the runner's output does not fit: {where}: {problem['msg']}"
            )
        except EdgeError as error:
            log.warning("task %s failed: %s", task.task, error)
            return _without(task, "failed", error.reason, str(error))


async def _outcome(running: asyncio.Task[Result], task: Task) -> Result:
    """Wait for a run. Cancelled alone, it is a result; with us, the agent stops and the inbox keeps the letter."""
    try:
        await asyncio.wait({running})
    except asyncio.CancelledError:
        running.cancel()
        raise
    if running.cancelled():
        return _without(task, "failed", "cancelled", "cancelled while it ran")
    return running.result()


def _without(task: Task, outcome: str, reason: str, message: str) -> Result:
    return Result.model_validate(
        {
            "task": task.task,
            "term": task.term,
            "outcome": outcome,
            "reason": reason,
            "message": message[:_MAX_LINE],
            "took_s": 0.0,
            "cpu_s": 0.0,
        }
    )
