"""Splits labelled data into uneven shards, one per device, and a part that nobody trains on (Hsu 2019, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
MAX_DRAWS = 100
HOLDOUT_FILE = "holdout.npz"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """How to split.

    Attributes:
        shards: how many.
        alpha: of the Dirichlet distribution over shards that each class is dealt by; small is uneven.
        smallest: samples that every shard has at least.
        holdout: share that is in no shard.
        seed: equal seeds split equally.

    Raises:
        ValueError: for a value out of bounds.
    """

    shards: int = 8
    alpha: float = 0.5
    smallest: int = 20
    holdout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 10_000:
            raise ValueError(f"shards must be 1 to 10000, got {self.shards}")
        if not 1e-3 <= self.alpha <= 1e6:
            raise ValueError(f"alpha must be 0.001 to 1000000, got {self.alpha}")
        if self.smallest < 1:
            raise ValueError(f"the smallest shard must have at least 1 sample, got {self.smallest}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"the held-out share must be 0 to below 1, got {self.holdout}")


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into the data, each sample in exactly one place, ascending."""

    shards: tuple[Indices, ...]
    holdout: Indices


def split(labels: NDArray[Any], plan: ShardPlan) -> Split:
    """Deal samples out.

    Draws again while a shard is too small; after 100 draws the smallest shards are filled from the largest.

    Args:
        labels: class of each sample, (N,).
        plan: how.

    Raises:
        ValueError: if there are too few samples for the smallest shard that is wanted.
    """
    random = np.random.default_rng(plan.seed)
    order = random.permutation(len(labels))
    held = round(len(labels) * plan.holdout)
    holdout, rest = np.sort(order[:held]), order[held:]
    if len(rest) < plan.shards * plan.smallest:
        raise ValueError(
            f"split {len(labels)} samples: {len(rest)} are left to train on, {plan.shards} shards of at least "
            f"{plan.smallest} need {plan.shards * plan.smallest}; ask for fewer or smaller shards"
        )
    for _ in range(MAX_DRAWS):
        shards = _deal(labels, rest, plan, random)
        if min(len(shard) for shard in shards) >= plan.smallest:
            break
    else:
        shards = _fill(shards, plan.smallest)
    return Split(tuple(np.sort(shard) for shard in shards), holdout)


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """scikit-learn's digits: 1,797 images of 8x8 pixels, (N, 64) in [0, 1], and their labels (N,)."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - a second that other commands do not need

    found = load_digits()
    return (found.data / 16.0).astype(np.float32), found.target.astype(np.int64)


DATASETS = {"digits": digits}


def write_shards(x: NDArray[np.float32], y: NDArray[np.int64], parts: Split, folder: Path) -> list[Path]:
    """Write `shard-1.npz` ... and `holdout.npz`, `x` and `y` in each; returns the paths, the last is held out."""
    folder.mkdir(parents=True, exist_ok=True)
    named = [(f"shard-{number}.npz", indices) for number, indices in enumerate(parts.shards, start=1)]
    paths = []
    for name, indices in [*named, (HOLDOUT_FILE, parts.holdout)]:
        np.savez(folder / name, x=x[indices], y=y[indices])
        paths.append(folder / name)
    return paths


def _deal(labels: NDArray[Any], rest: Indices, plan: ShardPlan, random: np.random.Generator) -> list[Indices]:
    piles: list[list[Indices]] = [[] for _ in range(plan.shards)]
    for label in np.unique(labels[rest]):
        members = rest[labels[rest] == label]
        shares = random.dirichlet([plan.alpha] * plan.shards)
        cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for pile, part in zip(piles, np.split(members, cuts), strict=True):
            pile.append(part)
    return [np.concatenate(pile) for pile in piles]


def _fill(shards: list[Indices], smallest: int) -> list[Indices]:
    shards = list(shards)
    while True:
        sizes = [len(shard) for shard in shards]
        poor, rich = int(np.argmin(sizes)), int(np.argmax(sizes))
        if sizes[poor] >= smallest:
            return shards
        taken = min(smallest - sizes[poor], max(1, sizes[rich] - smallest))
        shards[poor] = np.concatenate([shards[poor], shards[rich][-taken:]])
        shards[rich] = shards[rich][:-taken]
