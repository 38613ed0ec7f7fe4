"""`classifier@1`: deterministic, bounded, and good at real digits, alone and together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causeway.data.shard import ShardPlan, digits, split
from edge_runtime.learning.catalogue import BUILTIN, TrainingError, build_estimator, known_estimators
from edge_runtime.learning.classifier import Classifier
from edge_runtime.learning.vector import count, pack, read_weights, shapes_of, unpack, write_weights
from services.aggregator.fx1 import Accumulator

SMALL: dict[str, Any] = {"features": 3, "hidden": 4, "classes": 2, "epochs": 2}


def small_data(count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(5).random((count, 3)).astype(np.float32)
    return x, (x[:, 0] > 0.5).astype(np.int64)


def test_equal_seeds_train_to_equal_bits_and_others_do_not() -> None:
    x, y = small_data()
    found = []
    for seed in (1, 1, 2):
        model = Classifier(SMALL, seed=7)
        model.train(x, y, seed=seed)
        found.append(pack(model.get_weights()))
    assert found[0] == found[1] != found[2]
    assert pack(Classifier(SMALL, seed=1).get_weights()) != pack(Classifier(SMALL, seed=2).get_weights())


def test_weights_never_leave_what_the_exact_sum_takes() -> None:
    x, y = small_data()
    model = Classifier({**SMALL, "lr": 10.0, "epochs": 20})
    model.train(x * 1_000, y, seed=0)
    assert all(np.all(np.abs(tensor) <= 8) for tensor in model.get_weights().values())


def test_federated_averaging_over_uneven_shards_beats_every_shard_alone() -> None:
    x, y = digits()
    parts = split(y, ShardPlan())
    held = x[parts.holdout], y[parts.holdout]
    alone = Classifier({"epochs": 60})
    alone.train(x[parts.shards[0]], y[parts.shards[0]], seed=0)
    model = Classifier({})
    shapes = shapes_of(model.get_weights())
    for number in range(8):
        total = Accumulator(count(shapes))
        base = model.get_weights()
        for shard in parts.shards:
            model.set_weights(base)
            trained = model.train(x[shard], y[shard], seed=number)
            total.add(np.frombuffer(pack(model.get_weights()), "<f4"), trained.samples)
        model.set_weights(unpack(total.mean(), shapes))
    assert model.evaluate(*held)["accuracy"] >= 0.93
    assert alone.evaluate(*held)["accuracy"] < 0.8
    assert (model.predict(held[0]) == held[1]).mean() == pytest.approx(model.evaluate(*held)["accuracy"])


def test_saved_weights_come_back_and_those_of_another_model_are_refused(tmp_path: Path) -> None:
    one, other = Classifier(SMALL, seed=1), Classifier(SMALL, seed=2)
    one.save(tmp_path / "w")
    other.load(tmp_path / "w")
    assert pack(one.get_weights()) == pack(other.get_weights())
    with pytest.raises(ValueError, match="do not fit this model"):
        Classifier({**SMALL, "hidden": 5}).load(tmp_path / "w")
    (tmp_path / "w").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a safetensors file"):
        one.load(tmp_path / "w")


@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=5)
)
def test_a_vector_unpacks_to_what_was_packed(shapes: dict[str, list[int]]) -> None:
    random = np.random.default_rng(0)
    weights = {name: random.random(shape).astype(np.float32) for name, shape in shapes.items()}
    again = unpack(np.frombuffer(pack(weights), "<f4"), shapes_of(weights))
    assert pack(again) == pack(weights)
    assert list(again) == sorted(weights, key=str.encode)
    assert {n: t.shape for n, t in read_weights(write_weights(weights)).items()} == {
        n: t.shape for n, t in weights.items()
    }
    assert write_weights(again) == write_weights(weights)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lrr": 1}, "no parameter 'lrr'"),
        ({"lr": 0}, "parameter lr"),
        ({"classes": 1}, "parameter classes"),
        ({"epochs": "many"}, "invalid literal"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message) as raised:
        build_estimator("classifier@1", parameters, seed=0)
    assert raised.value.reason == "bad_parameters"


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0), "0 samples"),
        (np.zeros((2, 3)), np.zeros(3), "2 samples and 3 labels"),
        (np.zeros((2, 4)), np.zeros(2), "4 features"),
        (np.zeros((2, 3)), np.array([0, 2]), "knows 2 classes"),
        (np.full((2, 3), np.nan), np.zeros(2), "NaN"),
    ],
)
def test_data_that_does_not_fit_is_refused(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(SMALL).train(x, y, seed=0)


def test_estimators_are_found_by_name_and_the_owners_win() -> None:
    assert known_estimators({"mine@1": "a:B"}) == ["classifier@1", "mine@1"]
    mine = {"mine@1": BUILTIN["classifier@1"], "gone@1": "no.such:Thing"}
    assert isinstance(build_estimator("mine@1", SMALL, seed=0, installed=mine), Classifier)
    for name in ("gone@1", "other@1"):
        with pytest.raises(TrainingError) as raised:
            build_estimator(name, {}, seed=0, installed=mine)
        assert raised.value.reason == "no_estimator"
