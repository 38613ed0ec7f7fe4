"""What can be trained across devices. Anything with these methods takes part; numpy arrays in, numpy arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
"""Floating tensors by name. On the wire: names in byte order, C order, float32 little-endian."""

Samples = NDArray[Any]
"""Samples first: (N, ...)."""

WEIGHT_BOUND = 8.0
"""No weight may leave [-8, 8]: the exact sum refuses an update that holds one."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What one local training came to.

    Attributes:
        samples: how many samples it saw; the weight of the update.
        metrics: by name, of the trained weights on the training data; at least `loss`.
    """

    samples: int
    metrics: dict[str, float]


class Estimator(Protocol):
    """A model with its own training. Constructed as `Class(parameters, seed=...)`; equal seeds give equal weights.

    Equal weights, data and seed must train to equal weights, so that a repetition after a crash is the same update.
    """

    def __init__(self, parameters: Mapping[str, Any], *, seed: int = 0) -> None:
        """Check the parameters (ValueError) and make initial weights."""

    def train(self, x: Samples, y: Samples, *, seed: int) -> Trained:
        """Train on x (N, features...) and y (N,) from the present weights; N >= 1."""

    def evaluate(self, x: Samples, y: Samples) -> dict[str, float]:
        """Metrics on data that is not trained on: `loss`, and `accuracy` if it classifies."""

    def predict(self, x: Samples) -> Samples:
        """One answer per sample, (N,)."""

    def load(self, path: Path) -> None:
        """Take weights from a safetensors file; ValueError if names or shapes differ."""

    def save(self, path: Path) -> None:
        """Write weights to a safetensors file."""

    def get_weights(self) -> Weights:
        """A copy of the weights."""

    def set_weights(self, weights: Weights) -> None:
        """Replace the weights; ValueError if names or shapes differ."""
