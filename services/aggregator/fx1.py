"""The exact sum, encoding `fx1`: fixed point in int64, so order does not matter and a rerun is bit-identical.

q = round-half-even(x * 2^27) for float32 |x| <= 8; acc += w*q; mean = acc / (W * 2^27). With
w <= 2^12 and at most 2^20 updates |acc| <= 2^(27+3+12+20) = 2^62, so nothing ever overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 27
SCALE = float(1 << FRACTION_BITS)
BOUND = 8.0
MAX_WEIGHT = 4_096
MAX_UPDATES = 1 << 20
COMPILE_FROM = 1 << 18
"""Numbers in a vector from which compiling pays; shorter ones are summed by numpy, to the same bits."""
_BLOCK = 1 << 15

Vector = NDArray[np.float32]
Accumulated = NDArray[np.int64]
Kernel = Callable[[Accumulated, Vector, int], bool]


class OutOfRangeError(ValueError):
    """A number of the vector is not within [-8, 8]; NaN is not either."""


def weight_of(samples: int, unit: int) -> int:
    """Weight of an update: w = min(4096, max(1, samples // unit))."""
    return min(MAX_WEIGHT, max(1, samples // unit))


def quantise(vector: Vector) -> Accumulated:
    """Fixed-point form of a vector.

    Raises:
        OutOfRangeError: unless |x| <= 8 everywhere.
    """
    require_in_range(vector)
    return _quantised(vector)


def require_in_range(vector: Vector) -> None:
    """Refuse a vector that the sum cannot hold.

    Raises:
        OutOfRangeError: naming the first number that does not fit.
    """
    fits = np.abs(vector) <= BOUND
    if not fits.all():
        place = int(np.argmin(fits))
        raise OutOfRangeError(f"number {place} of the vector is {vector[place]!s}, allowed is [-{BOUND:g}, {BOUND:g}]")


class Accumulator:
    """A weighted sum of vectors of one length, exact.

    Attributes:
        updates: how many vectors it holds.
        weight: W, the sum of their weights.
    """

    def __init__(self, length: int) -> None:
        self._sum: Accumulated = np.zeros(length, np.int64)
        self._kernel: Kernel = compiled_kernel() if length >= COMPILE_FROM else add_numpy
        self.updates = 0
        self.weight = 0

    def add(self, vector: Vector, weight: int) -> None:
        """Add w times a vector.

        Raises:
            OutOfRangeError: if a number does not fit; the sum is as before.
            ValueError: if the length or the weight does not fit, or the sum is full.
        """
        self._check(vector, weight)
        if self.updates >= MAX_UPDATES:
            raise ValueError(f"the sum holds {MAX_UPDATES} updates and takes no more")
        if not self._kernel(self._sum, vector, weight):
            self._kernel(self._sum, vector, -weight)  # exact, so this undoes it to the bit
            require_in_range(vector)
        self.updates += 1
        self.weight += weight

    def subtract(self, vector: Vector, weight: int) -> None:
        """Take back what `add` added; exact. Raises as `add`."""
        self._check(vector, weight)
        require_in_range(vector)
        if self.updates < 1 or self.weight < weight:
            raise ValueError(f"the sum of {self.updates} updates holds no such update")
        self._kernel(self._sum, vector, -weight)
        self.updates -= 1
        self.weight -= weight

    def mean(self) -> Vector:
        """float64(acc) / (float64(W) * 2^27), rounded to float32.

        Raises:
            ValueError: if nothing was added.
        """
        if self.weight < 1:
            raise ValueError("the mean of no updates does not exist")
        return (self._sum.astype(np.float64) / (float(self.weight) * SCALE)).astype(np.float32)

    def exact(self) -> Accumulated:
        """A copy of the sum, for comparisons."""
        return self._sum.copy()

    def _check(self, vector: Vector, weight: int) -> None:
        if vector.dtype != np.float32 or vector.shape != self._sum.shape:
            raise ValueError(
                f"a vector of {vector.dtype} {vector.shape} does not fit a sum of float32 {self._sum.shape}"
            )
        if not 1 <= weight <= MAX_WEIGHT:
            raise ValueError(f"weight {weight} is not within 1 to {MAX_WEIGHT}")


def add_numpy(total: Accumulated, vector: Vector, weight: int) -> bool:
    """Add what is in range; False if anything is not. In blocks that stay in the processor's cache."""
    complete = True
    for start in range(0, len(vector), _BLOCK):
        part = vector[start : start + _BLOCK]
        fits = np.abs(part) <= BOUND
        if not fits.all():
            complete = False
            part = np.where(fits, part, np.float32(0))
        total[start : start + _BLOCK] += _quantised(part) * weight
    return complete


@cache
def compiled_kernel() -> Kernel:
    """The same in one pass, compiled at its first use and kept on disk where that can be written."""
    from numba import njit  # noqa: PLC0415 - half a second and 100 MB that small jobs do not need

    try:
        compiled: Any = njit(cache=True)(_add_one_pass)
    except RuntimeError:  # nowhere to keep it: compile in every process
        compiled = njit(_add_one_pass)

    def kernel(total: Accumulated, vector: Vector, weight: int) -> bool:
        return bool(compiled(total, np.ascontiguousarray(vector), np.int64(weight)))

    return kernel


def _add_one_pass(total: Accumulated, vector: Vector, weight: int) -> bool:
    complete = True
    for i in range(vector.shape[0]):
        x = np.float64(vector[i])
        if abs(x) <= 8.0:  # false for NaN
            # rint rounds half to even, as numpy's does.
            total[i] += np.int64(np.rint(x * 134217728.0)) * weight
        else:
            complete = False
    return complete


def _quantised(vector: Vector) -> Accumulated:
    # Exact up to the rounding: a float32 has 24 bits and the product is a shift of its exponent.
    return np.rint(vector.astype(np.float64) * SCALE).astype(np.int64)
