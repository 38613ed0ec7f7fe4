"""Tiny ONNX models and smoke inputs for tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save

from schemas.ota import ReleaseCustom, SmokeSpec

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def scale_model(factor: float, width: int = 4) -> bytes:
    """y = factor * x, batch open."""
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    graph = helper.make_graph(
        [node],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def smoke_inputs(factor: float, width: int = 4) -> bytes:
    """Inputs with the outputs of `scale_model(factor)`."""
    given = np.arange(3 * width, dtype=np.float32).reshape(3, width)
    return save({"input": given, "expected": given * np.float32(factor)})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Made:
    """A release: its bytes and what is signed of them."""

    model: bytes
    smoke: bytes | None
    custom: ReleaseCustom
    floor: int = 0
    revoked: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return sha256(self.model)

    @property
    def target(self) -> str:
        return f"models/{self.custom.model}/{self.custom.version}/model.onnx"


def make_release(
    factor: float = 2.0, *, version: str = "1.0.0", seq: int = 1, expected: float | None = None, **custom: object
) -> Made:
    """A release of `scale_model(factor)`; `expected` is the factor that the smoke inputs promise."""
    smoke = smoke_inputs(factor if expected is None else expected)
    spec = SmokeSpec(sha256=sha256(smoke), recipe="0" * 64, length=len(smoke), tolerance_micro=100)
    facts = {"model": "digits", "version": version, "seq": seq, "recipe": "0" * 64, "pieces": 1, "created": CREATED}
    return Made(scale_model(factor), smoke, ReleaseCustom.model_validate(facts | {"smoke": spec} | custom))


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
