"""Worker job `task`: runs a runner in a process of its own and ends it when it exceeds its limits.

The limits are watched over the whole process tree: resident memory, CPU time and wall clock, and the owner's share of
the processor by pausing. The child sets rlimits on top, for what happens between two looks: RLIMIT_DATA and not
RLIMIT_AS, since numpy and onnxruntime reserve far more addresses than they ever touch.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import psutil

POLL_S = 0.02
MAX_OUTPUT_BYTES = 40_960
"""Below what a pipe holds, so that a child never waits for its reader, and below what a letter carries."""
MB = 1 << 20
_END_TIMEOUT_S = 5.0


def run(params: dict[str, Any]) -> dict[str, Any]:
    """Run one task.

    Args:
        params: `target` (`module:function`), `inputs`, `cpu_s`, `ram_mb`, `wall_s`, `max_cpu_percent`, `datasets` (name
            -> path), `slots`.

    Returns:
        Fields of a `schemas.scheduler.Result` but task and term. A limit that was exceeded is a failure with the
        reason `timeout`, `cpu_limit` or `memory_limit`.
    """
    began, spent_before = time.monotonic(), _children_cpu_s()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        try:
            child = _spawn(params, writer)
        finally:
            os.close(writer)
        with child:
            watch = _Watch(child.pid, params)
            try:
                exceeded = _wait(child, watch)
            finally:
                _end(child)
        answer = _read(reader)
    finally:
        os.close(reader)
    if exceeded is None and answer is None:
        exceeded = _by_signal(child.returncode, params)
    done: dict[str, Any] = (
        answer if exceeded is None and answer is not None else _failed(*(exceeded or ("crashed", "")))
    )
    # The watch misses what came after its last look; the kernel's account of ended children misses nothing.
    cpu_s = max(watch.cpu_s, _children_cpu_s() - spent_before)
    return done | {"took_s": round(time.monotonic() - began, 6), "cpu_s": round(cpu_s, 6)}


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _spawn(params: dict[str, Any], writer: int) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(  # noqa: S603 - our own module; the target comes from the owner's settings
        [sys.executable, "-m", "edge_runtime.tasks.child", str(writer)],
        stdin=subprocess.PIPE,
        stdout=2,  # the worker's standard output belongs to its protocol
        pass_fds=(writer,),
        # Its own group, to be ended with all that it starts; the same session, so that the kernel ends a paused child
        # of a worker that was killed.
        process_group=0,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    assert child.stdin is not None
    try:
        # The pipe stays open: its end tells the child that this process is gone.
        child.stdin.write(json.dumps(params).encode() + b"\n")
        child.stdin.flush()
    except OSError:
        with contextlib.suppress(OSError):
            child.stdin.close()
    return child


@dataclass
class _Watch:
    """Looks at a process tree and says which limit it exceeds."""

    pid: int
    params: dict[str, Any]
    began: float = field(default_factory=time.monotonic)
    cpu_s: float = 0.0
    paused: bool = False

    def look(self) -> tuple[str, str] | None:
        """Reason and message of an exceeded limit."""
        resident = self._measure()
        elapsed = time.monotonic() - self.began
        params = self.params
        if elapsed > params["wall_s"]:
            return "timeout", f"not done within {params['wall_s']:g} s"
        if self.cpu_s > params["cpu_s"]:
            return "cpu_limit", f"used {self.cpu_s:.1f} s of CPU time, the limit is {params['cpu_s']:g} s"
        if resident > params["ram_mb"] * MB:
            return "memory_limit", f"used {resident // MB} MB of memory, the limit is {params['ram_mb']} MB"
        self._share(elapsed)
        return None

    def _measure(self) -> int:
        """Resident bytes of the tree; takes over its CPU time, which never falls when a child of it ends."""
        resident, cpu_s = 0, 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    resident += process.memory_info().rss
                    times = process.cpu_times()
                    cpu_s += times.user + times.system
            times = root.cpu_times()
            cpu_s += times.children_user + times.children_system
        self.cpu_s = max(self.cpu_s, cpu_s)
        return resident

    def _share(self, elapsed: float) -> None:
        """Pause and continue the group, so that it stays within the owner's share of all processors."""
        share = self.params["max_cpu_percent"] / 100.0
        if share >= 1.0:
            return
        ahead = self.cpu_s > elapsed * share * (os.cpu_count() or 1)
        if ahead != self.paused:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGSTOP if ahead else signal.SIGCONT)
            self.paused = ahead


def _wait(child: subprocess.Popen[bytes], watch: _Watch) -> tuple[str, str] | None:
    while True:
        exceeded = watch.look()
        if exceeded is not None:
            return exceeded
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_S)
            return None


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(_END_TIMEOUT_S)
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()


def _read(reader: int) -> dict[str, Any] | None:
    raw = b""
    with contextlib.suppress(BlockingIOError):
        while len(raw) <= MAX_OUTPUT_BYTES and (part := os.read(reader, MAX_OUTPUT_BYTES + 1)):
            raw += part
    try:
        answer = json.loads(raw)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _by_signal(code: int | None, params: dict[str, Any]) -> tuple[str, str]:
    if code == -signal.SIGXCPU:
        return "cpu_limit", f"used more than {params['cpu_s']:g} s of CPU time"
    return "crashed", f"the runner ended with {code} and without a result; the agent's output has the cause"


def _failed(reason: str, message: str) -> dict[str, Any]:
    return {"outcome": "failed", "reason": reason, "message": message}
