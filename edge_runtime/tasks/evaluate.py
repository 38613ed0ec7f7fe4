"""`evaluate@1`: how right the installed model is on a local dataset. The samples stay; a few figures travel."""

from __future__ import annotations

import zipfile
from statistics import median

import numpy as np
from numpy.typing import NDArray

from edge_runtime.inference import Session
from edge_runtime.ota.slots import Slots
from edge_runtime.tasks.runners import RunnerContext, Scalar, TaskError
from schemas.errors import TopicError
from schemas.ids import check_identifier

BATCH = 256
TIMED_SAMPLES = 50
"""Single inferences whose median is the latency."""


def run(inputs: dict[str, Scalar], context: RunnerContext) -> dict[str, Scalar]:
    """Evaluate.

    Args:
        inputs: `model` and `dataset`, both names.
        context: where they are on this device.

    Returns:
        `accuracy` in [0, 1], `samples`, `sha256` and `version` of the model that answered, `p50_ms` of one inference.

    Raises:
        TaskError: `bad_inputs`, `no_dataset`, `bad_dataset` or `no_model`.
        InferenceError: if the model does not load or does not take the samples.
    """
    dataset, model = _name(inputs, "dataset"), _name(inputs, "model")
    x, y = load_dataset(context, dataset)
    slots = Slots(context.slots)
    digest = slots.load(model).digest
    if digest is None:
        raise TaskError(f"no version of model {model} is installed here", reason="no_model")
    session = Session(slots.file(model, digest), digest)
    right = sum(
        int((_labels(session, x[start : start + BATCH]) == y[start : start + BATCH]).sum())
        for start in range(0, len(x), BATCH)
    )
    taken = [session.run(x[index : index + 1]).took_ms for index in range(min(TIMED_SAMPLES, len(x)))]
    output: dict[str, Scalar] = {
        "accuracy": round(right / len(x), 6),
        "samples": len(x),
        "sha256": digest,
        "p50_ms": round(median(taken), 4),
    }
    release = slots.release(model, digest)
    return output | ({"version": release.version} if release is not None else {})


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


def _name(inputs: dict[str, Scalar], key: str) -> str:
    try:
        return check_identifier(str(inputs.get(key, "")), key)
    except TopicError as error:
        raise TaskError(f"input {key}: {error}", reason="bad_inputs") from error


def _labels(session: Session, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Classes of a batch: the first output is either labels (N,) or scores (N, classes)."""
    answer = np.asarray(next(iter(session.run(x).outputs.values())))
    if answer.ndim > 1:
        answer = answer.reshape(len(x), -1).argmax(axis=1)
    return answer.astype(np.int64)
