"""`evaluate@1`: how right the installed model is on a local dataset. The samples stay; three figures travel."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge_runtime.tasks.runners import RunnerContext, Scalar, TaskError

BATCH = 256
TIMED_SAMPLES = 50
"""Single inferences whose median is the latency."""


def run(inputs: dict[str, Scalar], context: RunnerContext) -> dict[str, Scalar]:
    """Evaluate.

    Args:
        inputs: `model` and `dataset`, both names.
        context: where they are on this device.

    Returns:
        `accuracy` in [0, 1], `samples`, `sha256` of the model file that answered, `p50_ms` of one inference, and the
        `version` where the slot tells it.

    Raises:
        TaskError: `bad_inputs`, `no_dataset`, `bad_dataset`, `no_model` or `bad_model`.
    """
    dataset, model = _name(inputs, "dataset"), _name(inputs, "model")
    x, y = load_dataset(context, dataset)
    digest, version, raw = load_model(context.slots / model)
    session = _session(model, raw)
    if len(session.get_inputs()[0].shape) == 2:
        x = x.reshape(len(x), -1)
    try:
        accuracy = _accuracy(session, x, y)
        p50_ms = _p50_ms(session, x)
    except Exception as error:  # onnxruntime's errors share no root but this
        raise TaskError(f"run {model} on {dataset}: {error}", reason="bad_model") from error
    output: dict[str, Scalar] = {
        "accuracy": round(accuracy, 6),
        "samples": len(x),
        "sha256": digest,
        "p50_ms": round(p50_ms, 4),
    }
    return output | ({"version": version} if version else {})


def load_dataset(context: RunnerContext, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`x` (N, ...) float32 and `y` (N,) of a local dataset."""
    path = context.datasets.get(name)
    if path is None:
        raise TaskError(f"there is no dataset {name} here", reason="no_dataset")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x = np.ascontiguousarray(arrays["x"], np.float32)
            y = np.asarray(arrays["y"]).astype(np.int64)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TaskError(f"read dataset {name}: {error}", reason="bad_dataset") from error
    if not len(x) or y.shape != (len(x),):
        raise TaskError(f"dataset {name} has x {x.shape} and y {y.shape}: one label per sample", reason="bad_dataset")
    return x, y


def load_model(slot: Path) -> tuple[str, str | None, bytes]:
    """Digest, version and bytes of a model's active slot. The bytes are read once, so a swap meanwhile does no harm."""
    try:
        state: dict[str, Any] = json.loads((slot / "state.json").read_bytes())
        raw = (slot / str(state["digest"]) / "model.onnx").read_bytes()
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(f"model {slot.name} is not installed here: {error!r}", reason="no_model") from error
    actual = hashlib.sha256(raw).hexdigest()
    if actual != state["digest"]:
        raise TaskError(f"model {slot.name} should be {state['digest']} but is {actual}", reason="bad_model")
    version = state.get("version")
    return actual, str(version) if version else None, raw


def _name(inputs: dict[str, Scalar], key: str) -> str:
    value = inputs.get(key)
    if not isinstance(value, str) or not value.replace("-", "").replace("_", "").isalnum():
        raise TaskError(f"input {key} must name a {key}, got {value!r}", reason="bad_inputs")
    return value


def _session(model: str, raw: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise TaskError(f"load model {model}: {error}", reason="bad_model") from error


def _accuracy(session: onnxruntime.InferenceSession, x: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    right = 0
    for start in range(0, len(x), BATCH):
        right += int((_labels(session, x[start : start + BATCH]) == y[start : start + BATCH]).sum())
    return right / len(x)


def _labels(session: onnxruntime.InferenceSession, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Classes of a batch: the first output is either labels (N,) or scores (N, classes)."""
    answer = np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])
    if answer.ndim > 1:
        answer = answer.reshape(len(x), -1).argmax(axis=1)
    return answer.astype(np.int64)


def _p50_ms(session: onnxruntime.InferenceSession, x: NDArray[np.float32]) -> float:
    taken = []
    for index in range(min(TIMED_SAMPLES, len(x))):
        began = time.perf_counter()
        _labels(session, x[index : index + 1])
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)) * 1_000.0
