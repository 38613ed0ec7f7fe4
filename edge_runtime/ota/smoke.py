"""Worker job `smoke`: loads a model on trial, compares its outputs with the signed ones and measures it."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from edge_runtime.errors import InstallError
from edge_runtime.inference import Array, Session
from edge_runtime.ota.slots import digest_of

MAX_RUNS = 20
MAX_MEASURE_S = 2.0
"""A slow model is run fewer times, at least once."""


def run(params: dict[str, Any]) -> dict[str, Any]:
    """Try a model.

    Args:
        params: `model` (path), `sha256`, and of the smoke inputs `inputs` (path of a safetensors file with `input` and
            `expected`, or null), `inputs_sha256`, `tolerance`. Without inputs the model runs once on zeros.

    Returns:
        `schemas.ota.Smoke` as a dict; `passed` is false where the outputs are off by more than the tolerance.

    Raises:
        InferenceError: if the model does not load or run.
        InstallError: `bad_smoke` or `wrong_digest` if the inputs are not what was signed.
    """
    session = Session(Path(params["model"]), params["sha256"])
    if params.get("inputs") is None:
        answer = session.run(session.zeros())
        return {"passed": True, "samples": 0, "p50_ms": answer.took_ms}
    inputs, expected = _read(Path(params["inputs"]), params["inputs_sha256"])
    took_ms: list[float] = []
    began = time.perf_counter()
    while not took_ms or (len(took_ms) < MAX_RUNS and time.perf_counter() - began < MAX_MEASURE_S):
        answer = session.run(inputs)
        took_ms.append(answer.took_ms)
    output = np.asarray(next(iter(answer.outputs.values())), np.float64)
    if output.shape != expected.shape:
        raise InstallError(
            f"smoke test: the output has shape {output.shape}, signed is {expected.shape}", reason="smoke_mismatch"
        )
    error = float(np.max(np.abs(output - expected), initial=0.0))
    measured = {"samples": len(inputs), "p50_ms": median(took_ms)}
    # A comparison with NaN is false, so an output that is not a number fails.
    passed = error <= params["tolerance"]
    return measured | {"passed": passed, "max_error": error if np.isfinite(error) else None}


def _read(path: Path, sha256: str) -> tuple[Array, Array]:
    if digest_of(path)[0] != sha256:
        raise InstallError("smoke test: the inputs are not the signed ones", reason="wrong_digest")
    try:
        tensors = load_tensors(path.read_bytes())
        inputs, expected = tensors["input"], tensors["expected"]
    except (SafetensorError, KeyError) as error:
        raise InstallError(
            f"smoke test: the inputs need tensors `input` and `expected` ({error!r})", reason="bad_smoke"
        ) from error
    if inputs.ndim == 0 or len(inputs) == 0:
        raise InstallError("smoke test: `input` has no samples", reason="bad_smoke")
    return inputs, expected.astype(np.float64)
