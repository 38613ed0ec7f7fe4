from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.letters.retention import (
    EVICTION_ORDER,
    KEEP_AT_LEAST_S,
    KEEP_RECEIPTED_S,
    Amount,
    Bounds,
    Gap,
    Kept,
    floor_of,
    lane_above_bounds,
    lane_to_evict,
    may_go,
)

BOUND = Amount(100, 100_000)
BOUNDS = Bounds(BOUND, dict.fromkeys(EVICTION_ORDER, BOUND), {})
amounts = st.builds(Amount, st.integers(0, 60), st.integers(0, 60_000))


@given(
    st.sampled_from(EVICTION_ORDER),
    st.integers(1, 5_000),
    st.fixed_dictionaries(dict.fromkeys(EVICTION_ORDER, amounts)),
)
def test_a_letter_never_pushes_out_a_more_urgent_one(lane, size, waiting) -> None:
    try:
        victim = lane_to_evict(lane, size, waiting, BOUNDS)
    except ValueError:
        return
    assert victim is None or EVICTION_ORDER.index(victim) <= EVICTION_ORDER.index(lane)
    if victim is not None:
        assert waiting[victim].letters


def test_bulk_goes_before_normal_before_control() -> None:
    full = {"bulk": Amount(1, 1), "normal": Amount(1, 1), "control": Amount(99, 1)}
    assert lane_to_evict("control", 1, full, BOUNDS) == "bulk"
    assert lane_to_evict("control", 1, full | {"bulk": Amount()}, BOUNDS) == "normal"
    assert lane_to_evict("control", 1, {"control": Amount(100, 1)}, BOUNDS) == "control"


def test_some_room_is_for_control_alone() -> None:
    nearly = {"normal": Amount(90, 10)}
    assert lane_to_evict("control", 1, nearly, BOUNDS) is None
    assert lane_to_evict("normal", 1, nearly, BOUNDS) == "normal"


def test_a_less_urgent_letter_is_refused_when_only_urgent_ones_are_left() -> None:
    with pytest.raises(ValueError, match="no letter of lane bulk"):
        lane_to_evict("bulk", 1, {"control": Amount(95, 1)}, BOUNDS)


@pytest.mark.parametrize(
    ("age", "kept", "goes"),
    [
        (KEEP_RECEIPTED_S, Amount(1, 1), True),
        (KEEP_RECEIPTED_S - 1, Amount(20, 1), False),
        (KEEP_AT_LEAST_S, Amount(21, 1), True),
        (KEEP_AT_LEAST_S - 1, Amount(99, 1), False),
        (1, Amount(101, 1), True),
    ],
)
def test_receipted_letters_are_kept_a_day_or_at_least_five_minutes(age, kept, goes) -> None:
    assert may_go(Kept(1_000.0, 1), kept, BOUND, 1_000.0 + age) is goes


def test_the_floor_is_the_lowest_held_without_a_gap() -> None:
    assert floor_of(7, 3, []) == 3
    assert floor_of(7, 3, [Gap(5, 6)]) == 7
    assert floor_of(4, 3, [Gap(5, 6)]) == 3


def test_a_lane_that_is_full_gives_up_its_own() -> None:
    bounds = Bounds(BOUND, dict.fromkeys(EVICTION_ORDER, BOUND) | {"normal": Amount(10, 100_000)}, {})
    assert lane_to_evict("normal", 1, {"normal": Amount(10, 1), "bulk": Amount(5, 1)}, bounds) == "normal"
    assert lane_to_evict("bulk", 1, {"normal": Amount(10, 1), "bulk": Amount(5, 1)}, bounds) is None


@given(st.fixed_dictionaries(dict.fromkeys(EVICTION_ORDER, amounts)), st.sampled_from(EVICTION_ORDER))
def test_what_exceeds_the_bounds_shrinks_until_it_fits(waiting, narrow) -> None:
    bounds = Bounds(BOUND, dict.fromkeys(EVICTION_ORDER, BOUND) | {narrow: Amount(20, 20_000)}, {})
    waiting = {lane: Amount(held.letters, held.bytes if held.letters else 0) for lane, held in waiting.items()}
    while (lane := lane_above_bounds(waiting, bounds)) is not None:
        held = waiting[lane]
        assert held.letters, "only a lane with letters can give one up"
        size = held.bytes if held.letters == 1 else held.bytes // held.letters
        waiting[lane] = held - Amount(1, size)
    assert sum(waiting.values(), Amount()).fits(BOUND)
    assert waiting[narrow].fits(Amount(20, 20_000))
