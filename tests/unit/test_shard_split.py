"""Splitting: every sample in exactly one place, no shard too small, equal seeds split equally."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from causeway.cli.data import app
from causeway.data.shard import ShardPlan, digits, split, write_shards

PLANS = st.builds(
    ShardPlan,
    shards=st.integers(1, 9),
    alpha=st.sampled_from([0.01, 0.5, 100.0]),
    smallest=st.integers(1, 8),
    holdout=st.sampled_from([0.0, 0.2, 0.5]),
    seed=st.integers(0, 2**32),
)
LABELS = st.lists(st.integers(0, 4), min_size=150, max_size=300).map(np.array)


@given(LABELS, PLANS)
def test_each_sample_is_in_exactly_one_place_and_no_shard_is_too_small(labels: np.ndarray, plan: ShardPlan) -> None:
    parts = split(labels, plan)
    everything = np.concatenate([*parts.shards, parts.holdout])
    assert sorted(everything.tolist()) == list(range(len(labels)))
    assert len(parts.shards) == plan.shards
    assert min(len(shard) for shard in parts.shards) >= plan.smallest
    assert len(parts.holdout) == round(len(labels) * plan.holdout)
    again = split(labels, plan)
    assert all(np.array_equal(a, b) for a, b in zip(parts.shards, again.shards, strict=True))


def test_a_small_alpha_is_uneven() -> None:
    _, y = digits()

    def spread(alpha: float) -> float:
        shards = split(y, ShardPlan(alpha=alpha)).shards
        shares = np.array([np.bincount(y[shard], minlength=10) / len(shard) for shard in shards])
        return float(shares.std(axis=0).mean())

    assert spread(0.1) > spread(0.5) > spread(1_000)


def test_what_cannot_be_split_is_said() -> None:
    with pytest.raises(ValueError, match="160 are left to train on, 8 shards of at least 50 need 400"):
        split(np.zeros(200), ShardPlan(smallest=50))
    for wrong in ({"shards": 0}, {"alpha": 0}, {"smallest": 0}, {"holdout": 1}):
        with pytest.raises(ValueError):
            ShardPlan(**wrong)


def test_the_digits_are_real_and_land_in_files(tmp_path: Path) -> None:
    x, y = digits()
    assert (x.shape, x.dtype, y.shape) == ((1797, 64), np.float32, (1797,))
    assert (x.min(), x.max()) == (0, 1)
    parts = split(y, ShardPlan())
    paths = write_shards(x, y, parts, tmp_path / "shards")
    assert [path.name for path in paths] == [*(f"shard-{n}.npz" for n in range(1, 9)), "holdout.npz"]
    with np.load(paths[-1]) as held:
        assert len(held["x"]) == len(held["y"]) == 359


def test_the_command_writes_shards_and_explains_what_it_cannot(tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["shard", "--shards", "3", "--out", str(tmp_path / "s"), "--json"])
    assert done.exit_code == 0
    assert '"samples": 1797' in done.stdout
    assert len(list((tmp_path / "s").iterdir())) == 4
    wrong = runner.invoke(app, ["shard", "--shards", "900", "--out", str(tmp_path / "t")])
    assert wrong.exit_code == 2
    assert "ask for fewer or smaller shards" in wrong.stderr.replace("\n", " ")
