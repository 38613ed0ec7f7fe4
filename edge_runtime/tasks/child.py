"""`python -m edge_runtime.tasks.child FD`: one runner in one process; parameters on stdin, the result on FD."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

NICE = 10
_DATA_HEADROOM = 384 << 20
"""Thread stacks and arenas count as data although hardly touched; the watching parent holds the exact limit."""
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Read the parameters, take on the limits, run, answer."""
    line = sys.stdin.buffer.readline()
    # The worker keeps the pipe open for as long as it lives.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    params = json.loads(line)
    _limit(params)
    for name in _ONE_THREAD:
        os.environ.setdefault(name, "1")
    answer = _answer(params)
    with os.fdopen(int(sys.argv[1]), "wb") as writer:
        writer.write(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a runner's threads must not keep the task alive


def _limit(params: dict[str, Any]) -> None:
    os.nice(NICE)
    cpu_s = math.ceil(params["cpu_s"])
    _lower(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
    data = params["ram_mb"] * (1 << 20) + _DATA_HEADROOM
    _lower(resource.RLIMIT_DATA, data, data)
    _lower(resource.RLIMIT_CORE, 0, 0)


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set a limit, but never above one that the owner's system has set already."""
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


def _answer(params: dict[str, Any]) -> bytes:
    # Imported here, under the limits.
    from edge_runtime.errors import EdgeError  # noqa: PLC0415
    from edge_runtime.tasks.execute import MAX_OUTPUT_BYTES  # noqa: PLC0415

    try:
        written = json.dumps({"outcome": "ok", "output": _run(params)}, allow_nan=False).encode()
    except MemoryError:
        return _failure("memory_limit", f"needs more than {params['ram_mb']} MB of memory")
    except EdgeError as error:
        return _failure(error.reason, str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - what the owner's code raises is the task's failure
        traceback.print_exc()
        return _failure("runner_error", f"{type(error).__name__}: {error}")
    if len(written) > MAX_OUTPUT_BYTES:
        return _failure("bad_output", f"the output has {len(written)} bytes, at most {MAX_OUTPUT_BYTES} are allowed")
    return written


def _run(params: dict[str, Any]) -> dict[str, Any]:
    from edge_runtime.tasks.runners import RunnerContext, TaskError  # noqa: PLC0415

    module, _, name = params["target"].partition(":")
    try:
        runner = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise TaskError(f"import {params['target']}: {error}", reason="no_runner") from error
    datasets = {dataset: Path(path) for dataset, path in params["datasets"].items()}
    output = runner(params["inputs"], RunnerContext(slots=Path(params["slots"]), datasets=datasets))
    if not isinstance(output, dict):
        raise TaskError(f"the runner returned {type(output).__name__}, not a dict of values", reason="bad_output")
    return output


def _failure(reason: str, message: str) -> bytes:
    return json.dumps({"outcome": "failed", "reason": reason, "message": message[:500]}).encode()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
