"""`profile@1`: how fast one core of this device is, measured in about 0.3 s of CPU time.

CPU time and not the clock on the wall: what else runs now is told by the load, and must not count twice.
"""

from __future__ import annotations

import hashlib
import os
import time

import numpy as np

from edge_runtime.tasks.runners import RunnerContext, Scalar

BUDGET_S = 0.12
"""CPU time per measurement; warming up comes on top."""
_SIDE = 256
_BLOCK_BYTES = 1 << 18


def run(inputs: dict[str, Scalar], context: RunnerContext) -> dict[str, Scalar]:  # noqa: ARG001 - the form of a runner
    """Measure.

    Returns:
        `gflops` (float32 matrix product) and `sha256_mb_s` (10^6 bytes), both of one core; `cpu_count`; `cpu_s` spent.
    """
    began = time.process_time()
    gflops = measure_gflops()
    hashing = measure_sha256_mb_s()
    return {
        "gflops": round(gflops, 3),
        "sha256_mb_s": round(hashing, 1),
        "cpu_count": os.cpu_count() or 1,
        "cpu_s": round(time.process_time() - began, 4),
    }


def measure_gflops(budget_s: float = BUDGET_S) -> float:
    """10^9 float32 operations per second of CPU time in a matrix product of side 256 (2 n^3 operations each)."""
    random = np.random.default_rng(0)
    left = random.random((_SIDE, _SIDE), dtype=np.float32)
    right = random.random((_SIDE, _SIDE), dtype=np.float32)
    product = left @ right
    rounds, began = 0, time.process_time()
    while (spent := time.process_time() - began) < budget_s or not rounds:
        np.matmul(left, right, out=product)
        rounds += 1
    return rounds * 2 * _SIDE**3 / max(spent, 1e-9) / 1e9


def measure_sha256_mb_s(budget_s: float = BUDGET_S) -> float:
    """10^6 bytes hashed per second of CPU time."""
    block = bytes(_BLOCK_BYTES)
    digest = hashlib.sha256(block)
    rounds, began = 0, time.process_time()
    while (spent := time.process_time() - began) < budget_s or not rounds:
        digest.update(block)
        rounds += 1
    return rounds * _BLOCK_BYTES / max(spent, 1e-9) / 1e6
