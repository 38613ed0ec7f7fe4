"""Which estimators a device can train, by entry point. Imports none of them: the agent reads the names only."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from edge_runtime.learning.estimator import Estimator

BUILTIN: Mapping[str, str] = {"classifier@1": "edge_runtime.learning.classifier:Classifier"}
"""Estimators that come with the runtime."""


class TrainingError(EdgeError):
    """Local training could not be done; the round goes on without this device."""

    reason = "training"


def known_estimators(installed: Mapping[str, str]) -> list[str]:
    """Entry points that this device can train: the owner's and the built-in ones."""
    return sorted({*BUILTIN, *installed})


def build_estimator(
    name: str, parameters: Mapping[str, Any], *, seed: int, installed: Mapping[str, str] | None = None
) -> Estimator:
    """Construct an estimator with fresh weights.

    Args:
        name: entry point, as `classifier@1`.
        parameters: of the job; the estimator checks them.
        seed: of its initial weights.
        installed: the owner's estimators, `module:Class` by entry point; they win over the built-in ones.

    Raises:
        TrainingError: `no_estimator` if nothing has this name or its class cannot be imported, `bad_parameters` if
            the class refuses the parameters.
    """
    path = {**BUILTIN, **(installed or {})}.get(name)
    if path is None:
        raise TrainingError(
            f"build estimator {name}: not installed; known are {', '.join(known_estimators(installed or {}))}",
            reason="no_estimator",
        )
    module, _, attribute = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise TrainingError(f"build estimator {name} from {path}: {error}", reason="no_estimator") from error
    try:
        built: Estimator = make(parameters, seed=seed)
    except (ValueError, TypeError) as error:
        raise TrainingError(f"build estimator {name}: {error}", reason="bad_parameters") from error
    return built
