"""Worker job `train`: local training from the round's base to an update's vector."""

from __future__ import annotations

import hashlib
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.folder import write_durable
from edge_runtime.learning.catalogue import TrainingError, build_estimator
from edge_runtime.learning.estimator import WEIGHT_BOUND, Samples
from edge_runtime.learning.vector import pack


def run(params: dict[str, Any]) -> dict[str, Any]:
    """Train once.

    Args:
        params: `estimator` (entry point), `installed` (the owner's estimators), `parameters` (of the job), `base`
            (safetensors file), `dataset` (`.npz` with `x`, `y`), `output` (file for the vector), `seed`.

    Returns:
        `samples`, `metrics` (of the trained weights on the local data, and `train_s`), `path`, `sha256`, `length`.

    Raises:
        TrainingError: `no_estimator`, `bad_parameters`, `bad_base`, `no_dataset`, `bad_dataset`, `diverged`.
    """
    seed = int(params["seed"])
    estimator = build_estimator(
        params["estimator"], params["parameters"], seed=seed, installed=params.get("installed", {})
    )
    base = Path(params["base"])
    try:
        estimator.load(base)
    except (OSError, ValueError) as error:
        raise TrainingError(f"load base weights {base.name}: {error}", reason="bad_base") from error
    x, y = load_dataset(Path(params["dataset"]))
    started = time.monotonic()
    try:
        trained = estimator.train(x, y, seed=seed)
    except ValueError as error:
        raise TrainingError(f"train on {params['dataset']}: {error}", reason="bad_dataset") from error
    took_s = time.monotonic() - started
    weights = estimator.get_weights()
    if not all(np.all(np.abs(tensor) <= WEIGHT_BOUND) for tensor in weights.values()):
        raise TrainingError(
            f"a weight left [-{WEIGHT_BOUND:g}, {WEIGHT_BOUND:g}]: the job's learning rate is too high for this data",
            reason="diverged",
        )
    vector = pack(weights)
    output = Path(params["output"])
    write_durable(output, vector)
    return {
        "samples": trained.samples,
        "metrics": {**trained.metrics, "train_s": round(took_s, 6)},
        "path": str(output),
        "sha256": hashlib.sha256(vector).hexdigest(),
        "length": len(vector),
    }


def load_dataset(path: Path) -> tuple[Samples, Samples]:
    """Read x (N, ...) and y (N,) from an `.npz`; nothing in it is executed.

    Raises:
        TrainingError: `no_dataset` or `bad_dataset`.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["x"], arrays["y"]
    except FileNotFoundError as error:
        raise TrainingError(f"read dataset {path}: there is no such file", reason="no_dataset") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"read dataset {path}: {error}; it must be an .npz with arrays x and y", reason="bad_dataset"
        ) from error
