"""The jobs that a worker may run, and the lines that travel between the agent and its worker.

The agent resolves a job's name here; the child imports what the line names. Neither takes code from the platform.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

JOBS: dict[str, str] = {
    "trust.refresh": "edge_runtime.trust.refresh:run",
    "trust.target": "edge_runtime.trust.refresh:target",
    "smoke": "edge_runtime.ota.smoke:run",
    "infer": "edge_runtime.inference:run",
    "task": "edge_runtime.tasks.execute:run",
    "train": "edge_runtime.learning.trainer:run",
}
"""Name -> `module:function`, imported in the child only, at first use."""

MAX_LINE_BYTES = 8 << 20
"""Of a request or an answer; larger data goes by file."""


class Job(Protocol):
    """Runs in the child; blocks; JSON in, JSON out."""

    def __call__(self, params: dict[str, Any]) -> dict[str, Any]:
        """Do the work.

        Raises:
            EdgeError: its reason and message reach the caller as a WorkerError.
        """


def load(target: str) -> Job:
    """Import `module:function`.

    Raises:
        ImportError: if there is no such module or function.
    """
    module, _, name = target.partition(":")
    try:
        job: Job = getattr(import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"module {module} has no function {name!r}") from error
    return job
