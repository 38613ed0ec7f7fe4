"""The exact sum against exact fractions, in numpy and compiled, in any order, forth and back."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.aggregator import fx1
from services.aggregator.fx1 import Accumulator, OutOfRangeError, add_numpy, compiled_kernel, quantise, weight_of

NUMBER = st.floats(min_value=-8, max_value=8, width=32)
WEIGHT = st.integers(min_value=1, max_value=4096)
UPDATES = st.lists(st.tuples(st.lists(NUMBER, min_size=3, max_size=3), WEIGHT), min_size=1, max_size=12)


def vector(numbers: list[float]) -> fx1.Vector:
    return np.array(numbers, np.float32)


def total(updates: list[tuple[list[float], int]]) -> Accumulator:
    found = Accumulator(3)
    for numbers, weight in updates:
        found.add(vector(numbers), weight)
    return found


def round_half_even(value: Fraction) -> int:
    return round(value)


@given(st.lists(NUMBER, min_size=1, max_size=50))
def test_quantising_rounds_half_to_even_as_fractions_do(numbers: list[float]) -> None:
    expected = [round_half_even(Fraction(float(x)) * 2**27) for x in vector(numbers)]
    assert quantise(vector(numbers)).tolist() == expected


@given(UPDATES)
def test_the_mean_is_what_exact_fractions_give(updates: list[tuple[list[float], int]]) -> None:
    weight = sum(w for _, w in updates)
    for place, got in enumerate(total(updates).mean()):
        exact = sum(w * round_half_even(Fraction(float(np.float32(n[place]))) * 2**27) for n, w in updates)
        # float(int) and the division of floats are correctly rounded, as IEEE 754 demands of float64.
        assert got == np.float32(float(exact) / (float(weight) * 2.0**27))


@given(UPDATES, st.randoms(use_true_random=False))
def test_order_does_not_matter(updates: list[tuple[list[float], int]], random) -> None:
    shuffled = list(updates)
    random.shuffle(shuffled)
    assert total(updates).exact().tolist() == total(shuffled).exact().tolist()
    assert total(updates).mean().tobytes() == total(shuffled).mean().tobytes()


@given(UPDATES, UPDATES)
def test_subtracting_leaves_what_never_was(kept: list[tuple[list[float], int]], retracted) -> None:
    both = total([*retracted, *kept])
    for numbers, weight in retracted:
        both.subtract(vector(numbers), weight)
    assert both.exact().tolist() == total(kept).exact().tolist()
    assert (both.updates, both.weight) == (len(kept), sum(w for _, w in kept))


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=40), WEIGHT)
def test_compiled_and_numpy_agree_to_the_bit(numbers: list[float], weight: int) -> None:
    here, there = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    assert compiled_kernel()(here, vector(numbers), weight) == add_numpy(there, vector(numbers), weight)
    assert here.tobytes() == there.tobytes()


def test_a_long_vector_takes_the_compiled_way_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    updates = [random.uniform(-8, 8, 70_001).astype(np.float32) for _ in range(5)]
    sums = []
    for limit in (1, 1 << 40):
        monkeypatch.setattr(fx1, "COMPILE_FROM", limit)
        found = Accumulator(70_001)
        for number, update in enumerate(updates, start=1):
            found.add(update, number)
        sums.append(found.exact().tobytes() + found.mean().tobytes())
    assert sums[0] == sums[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 8.000001, -9.0])
@pytest.mark.parametrize("compile_from", [1, 1 << 40])
def test_a_number_out_of_range_refuses_the_whole_update(bad, compile_from, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fx1, "COMPILE_FROM", compile_from)
    found = Accumulator(3)
    found.add(vector([1, 2, 3]), 7)
    before = found.exact().tolist()
    with pytest.raises(OutOfRangeError, match="number 1 of the vector"):
        found.add(vector([5, bad, 5]), 3)
    assert (found.exact().tolist(), found.updates, found.weight) == (before, 1, 7)
    with pytest.raises(OutOfRangeError):
        quantise(vector([bad]))


def test_the_bound_itself_fits() -> None:
    assert quantise(vector([8.0, -8.0])).tolist() == [2**30, -(2**30)]
    assert 2**30 * fx1.MAX_WEIGHT * fx1.MAX_UPDATES <= 2**62


@pytest.mark.parametrize(
    ("samples", "unit", "expected"), [(1, 1, 1), (0, 1, 1), (99, 100, 1), (250, 100, 2), (10**9, 1, 4096)]
)
def test_weights_are_bounded(samples: int, unit: int, expected: int) -> None:
    assert weight_of(samples, unit) == expected


def test_what_does_not_fit_the_sum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Accumulator(2)
    with pytest.raises(ValueError, match="does not exist"):
        found.mean()
    with pytest.raises(ValueError, match="does not fit"):
        found.add(vector([1, 2, 3]), 1)
    with pytest.raises(ValueError, match="does not fit"):
        found.add(np.zeros(2), 1)  # type: ignore[arg-type]
    for weight in (0, 4097):
        with pytest.raises(ValueError, match="weight"):
            found.add(vector([1, 2]), weight)
    with pytest.raises(ValueError, match="holds no such update"):
        found.subtract(vector([1, 2]), 1)
    monkeypatch.setattr(fx1, "MAX_UPDATES", 1)
    found.add(vector([1, 2]), 1)
    with pytest.raises(ValueError, match="takes no more"):
        found.add(vector([1, 2]), 1)
