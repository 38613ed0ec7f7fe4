"""Weights of `classifier@1` as an ONNX model, and the files that a release of it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from edge_runtime.learning.classifier import Classifier
from edge_runtime.learning.estimator import Weights
from edge_runtime.learning.trainer import load_dataset
from edge_runtime.learning.vector import read_weights

OPSET = 17
IR_VERSION = 10
SMOKE_SAMPLES = 16


def to_onnx(weights: Weights, *, name: str = "classifier", metadata: Mapping[str, str] | None = None) -> bytes:
    """Build the model: input `x` float32 (N, features), outputs `logits` float32 (N, classes) and `label` int64 (N,).

    Equal weights give equal bytes. Raises ValueError if the weights are not those of `classifier@1`.
    """
    try:
        features, hidden = weights["hidden.weight"].shape
        _, classes = weights["output.weight"].shape
    except (KeyError, ValueError) as error:
        raise ValueError(f"export to ONNX: these are not weights of classifier@1: {sorted(weights)}") from error
    Classifier({"features": features, "hidden": hidden, "classes": classes}).set_weights(weights)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "hidden.weight", "hidden.bias"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "output.weight", "output.bias"], ["logits"]),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", features])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        ],
        [numpy_helper.from_array(weights[tensor], tensor) for tensor in sorted(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="causeway")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, dict(sorted((metadata or {}).items())))
    onnx.checker.check_model(model, full_check=True)
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def smoke_arrays(weights: Weights, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """`input` (the first samples of x) and `expected` (their logits), for the smoke test of a release."""
    model = classifier_of(weights)
    chosen = np.ascontiguousarray(x[:SMOKE_SAMPLES], dtype=np.float32)
    return {"input": chosen, "expected": np.ascontiguousarray(model.logits(chosen), dtype=np.float32)}


def write_release_files(weights: Weights, x: NDArray[np.float32], folder: Path) -> tuple[Path, Path]:
    """Write `model.onnx` and `smoke.safetensors`; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    model, smoke = folder / "model.onnx", folder / "smoke.safetensors"
    model.write_bytes(to_onnx(weights))
    save_file(smoke_arrays(weights, x), smoke)
    return model, smoke


def classifier_of(weights: Weights) -> Classifier:
    """An estimator with these weights."""
    features, hidden = weights["hidden.weight"].shape
    model = Classifier({"features": features, "hidden": hidden, "classes": weights["output.bias"].shape[0]})
    model.set_weights(weights)
    return model


def weights_of(path: Path) -> Weights:
    """Read a safetensors file of weights. Raises ValueError if it is none, OSError if it cannot be read."""
    return read_weights(path.read_bytes())


def train_alone(shard: Path, parameters: Mapping[str, Any] | None = None, *, seed: int = 0) -> Weights:
    """Train `classifier@1` on one shard, as a device would that has nobody to learn with: 60 epochs if none are named.

    Raises:
        edge_runtime.errors.EdgeError: if the shard cannot be read.
        ValueError: if data or parameters do not fit.
    """
    model = Classifier({"epochs": 60, **(parameters or {})}, seed=seed)
    x, y = load_dataset(shard)
    model.train(x, y, seed=seed)
    return model.get_weights()
