"""The ONNX model answers as the estimator does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from causeway.data.shard import ShardPlan, digits, split, write_shards
from causeway.learning.export import classifier_of, to_onnx, train_alone, weights_of, write_release_files
from edge_runtime.learning.classifier import Classifier


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shards")
    x, y = digits()
    write_shards(x, y, split(y, ShardPlan()), folder)
    return folder


def test_onnx_runtime_and_numpy_agree_on_held_out_digits(shards: Path, tmp_path: Path) -> None:
    weights = train_alone(shards / "shard-1.npz")
    model = classifier_of(weights)
    with np.load(shards / "holdout.npz") as held:
        x = held["x"]
    onnx_file, smoke_file = write_release_files(weights, x, tmp_path)
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("x", "tensor(float)", ["N", 64])]
    logits, labels = session.run(["logits", "label"], {"x": x})
    np.testing.assert_allclose(logits, model.logits(x), rtol=1e-5, atol=1e-4)
    assert labels.shape == (len(x),)
    assert (labels == model.predict(x)).all()
    smoke = load_file(smoke_file)
    assert {name: tensor.dtype for name, tensor in smoke.items()} == {"input": np.float32, "expected": np.float32}
    np.testing.assert_allclose(session.run(["logits"], {"x": smoke["input"]})[0], smoke["expected"], atol=1e-4)


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    model = Classifier({}, seed=3)
    model.save(tmp_path / "weights")
    assert to_onnx(weights_of(tmp_path / "weights")) == to_onnx(model.get_weights())
    assert to_onnx(model.get_weights(), metadata={"job": "a"}) != to_onnx(model.get_weights())


def test_weights_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="not weights of classifier@1"):
        to_onnx({"other": np.zeros(3, np.float32)})
    weights = Classifier({}).get_weights()
    weights["hidden.bias"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        to_onnx(weights)
