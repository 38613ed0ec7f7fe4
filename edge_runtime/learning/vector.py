"""Weights as one vector and as safetensors, both ways (names in byte order, C order, f32)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from edge_runtime.learning.estimator import Weights

Shapes = Mapping[str, tuple[int, ...]]
WIRE = np.dtype("<f4")


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, in the order of the vector."""
    return {name: weights[name].shape for name in _order(weights)}


def count(shapes: Shapes) -> int:
    """Length P of the vector, in numbers."""
    return sum(math.prod(shape) for shape in shapes.values())


def pack(weights: Weights) -> bytes:
    """The bytes that an update carries and that its sha256 is of."""
    return b"".join(np.asarray(weights[name], dtype=WIRE).tobytes(order="C") for name in _order(weights))


def unpack(vector: NDArray[np.float32], shapes: Shapes) -> Weights:
    """Tensors of a vector.

    Raises:
        ValueError: if its length is not that of the shapes.
    """
    if vector.shape != (count(shapes),):
        raise ValueError(f"a vector of shape {vector.shape} does not fit tensors of {count(shapes)} numbers")
    weights: Weights = {}
    start = 0
    for name in _order(shapes):
        size = math.prod(shapes[name])
        weights[name] = vector[start : start + size].reshape(shapes[name]).astype(np.float32, copy=True)
        start += size
    return weights


def write_weights(weights: Weights) -> bytes:
    """Safetensors; equal weights give equal bytes, so equal digests."""
    return save_tensors({name: np.asarray(weights[name], dtype=np.float32, order="C") for name in _order(weights)})


def read_weights(data: bytes) -> Weights:
    """Tensors of a safetensors file.

    Raises:
        ValueError: if it is not one, or holds anything but float32.
    """
    try:
        tensors = load_tensors(data)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise ValueError(f"tensor {name} is {tensor.dtype}, weights must be float32")
    return tensors


def check_shapes(weights: Weights, shapes: Shapes) -> None:
    """Refuse weights of another model.

    Raises:
        ValueError: naming what differs.
    """
    if shapes_of(weights) != dict(sorted(shapes.items(), key=lambda item: item[0].encode())):
        raise ValueError(f"weights of shapes {shapes_of(weights)} do not fit this model's {dict(shapes)}")


def _order(names: Mapping[str, object]) -> list[str]:
    return sorted(names, key=str.encode)
