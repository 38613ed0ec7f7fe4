"""Which runners are installed, by entry point. Imports none of them: the resident agent reads the names only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from edge_runtime.errors import EdgeError

Scalar = str | int | float | bool

BUILTIN: Mapping[str, str] = {
    "profile@1": "edge_runtime.tasks.profile:run",
    "evaluate@1": "edge_runtime.tasks.evaluate:run",
}
"""Runners that come with the runtime."""

_NEEDS: Mapping[str, tuple[str, ...]] = {"profile@1": ("numpy",), "evaluate@1": ("numpy", "onnxruntime")}


class TaskError(EdgeError):
    """A runner could not do its task; `reason` and message stand in the result."""

    reason = "task"


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """What a runner may see of the device.

    Attributes:
        datasets: local datasets by name, `.npz` with arrays `x` and `y`.
        slots: folder of the installed models, one folder per model.
    """

    slots: Path
    datasets: Mapping[str, Path] = field(default_factory=dict)


class Runner(Protocol):
    """Code that the owner installed; it runs in a process of its own, under the task's limits."""

    def __call__(self, inputs: dict[str, Scalar], context: RunnerContext) -> dict[str, Scalar]:
        """Do the task.

        Returns:
            At most 64 values, names as identifiers, strings up to 4,096 characters.

        Raises:
            TaskError: its reason and message travel in the result; any other exception becomes `runner_error`.
        """


def table(installed: Mapping[str, str]) -> dict[str, str]:
    """Entry point -> `module:function`: the built-in runners whose libraries are here, and the owner's, which win."""
    here = {name: target for name, target in BUILTIN.items() if all(map(find_spec, _NEEDS[name]))}
    return {**here, **installed}


def known_runners(installed: Mapping[str, str]) -> list[str]:
    """Entry points that this device can run, for its capabilities."""
    return sorted(table(installed))
