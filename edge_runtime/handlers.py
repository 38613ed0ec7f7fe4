"""The parts that act on letters, in the order in which they resume."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.ports import Context

PARTS = (
    "edge_runtime.ota.install:OtaHandler",
    "edge_runtime.tasks.handler:TaskHandler",
    "edge_runtime.learning.handler:LearningHandler",
)


def built_in_handlers(context: Context) -> list[Any]:
    """One of each."""
    made = []
    for part in PARTS:
        module, _, name = part.partition(":")
        made.append(getattr(import_module(module), name)(context))
    return made
