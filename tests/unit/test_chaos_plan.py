from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.pace import PATTERN, Go, Numbers
from tests.chaos.plan import KINDS, LASTS_S, LINKS, count_by_kind, make_plan, scaled

FULL = {"duration_s": 540.0, "sites": 10, "count": 72}
QUICK = {"duration_s": 60.0, "sites": 5, "count": 14}
seeds = st.integers(0, 10**6)


@given(seeds)
def test_the_same_seed_gives_the_same_plan_and_another_seed_another(seed: int) -> None:
    assert make_plan(seed, **FULL) == make_plan(seed, **FULL) != make_plan(seed + 1, **FULL)


@given(seeds)
def test_the_forms_that_are_run_have_enough_faults_of_every_kind(seed: int) -> None:
    full, quick = make_plan(seed, **FULL), make_plan(seed, **QUICK)
    assert len(full) >= 60
    assert len(quick) >= 12
    assert count_by_kind(full).keys() == set(KINDS)


@given(seeds, st.floats(20, 1_200), st.integers(1, 12), st.integers(0, 100))
def test_every_fault_is_mended_in_time_and_a_link_has_one_at_a_time(
    seed: int, duration_s: float, sites: int, count: int
) -> None:
    plan = make_plan(seed, duration_s, sites, count)
    assert plan == sorted(plan, key=lambda fault: fault.at_s)
    busy: dict[int, float] = {}
    for fault in plan:
        assert fault.at_s >= 0
        assert fault.at_s + fault.lasts_s <= duration_s + 0.02
        assert fault.lasts_s <= LASTS_S[fault.kind][1] + 0.01
        assert fault.site is None or 0 <= fault.site < sites
        if fault.kind in LINKS:
            assert fault.site is not None
            assert fault.at_s >= busy.get(fault.site, 0.0)
            busy[fault.site] = fault.at_s + fault.lasts_s


def test_a_scaled_plan_has_the_same_faults_in_less_time() -> None:
    plan = make_plan(3, **FULL)
    half = scaled(plan, 0.5)
    assert [(fault.kind, fault.site) for fault in half] == [(fault.kind, fault.site) for fault in plan]
    assert half[-1].at_s == plan[-1].at_s / 2


def test_a_load_is_due_by_its_time_and_not_before() -> None:
    go = Go(start=100.0, duration_s=10.0)
    assert [go.due(50, now) for now in (90.0, 100.0, 105.0, 110.0, 200.0)] == [0, 0, 25, 50, 50]


@given(st.lists(st.integers(0, 20), max_size=10))
def test_numbers_of_a_lane_are_without_gaps_over_any_restarts(batches: list[int]) -> None:
    highest: dict[str, int] = {}
    given_out = []
    for batch in batches:
        numbers = Numbers(dict(highest))
        given_out += numbers.take(batch)
        highest = numbers.highest
    for lane in set(PATTERN):
        own = [number for at, number in given_out if at == lane]
        assert own == list(range(1, len(own) + 1))
