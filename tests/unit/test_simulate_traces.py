from __future__ import annotations

from math import erfc, exp, log, sqrt
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causeway.simulate.availability import TRACES, Duration, Fixed, LogNormal, Weibull, integral
from causeway.simulate.statistics import Delay, Distribution
from causeway.simulate.theory import (
    DirectDelivery,
    binary_spray,
    direct_meeting_within,
    epidemic,
    epidemic_within,
    spray_and_wait_bound,
)

SETI = TRACES["seti"]
CALM = (LogNormal(0.3, 0.6), Weibull(1.4, 3.0), Fixed(5.0))


def test_the_published_fit_has_the_moments_that_its_formulas_give() -> None:
    assert SETI.on.mean == pytest.approx(10.35, abs=0.01)
    assert SETI.off is not None
    assert SETI.off.mean == pytest.approx(31.76, abs=0.01)
    assert SETI.share_on == pytest.approx(0.2458, abs=0.0001)


@pytest.mark.parametrize("duration", CALM, ids=["log-normal", "weibull", "fixed"])
def test_draws_have_the_moments_and_the_residual_life_of_their_distribution(duration: Duration) -> None:
    random = Random(7)
    draws = [duration.sample(random) for _ in range(40_000)]
    assert fmean(draws) == pytest.approx(duration.mean, rel=0.02)
    assert fmean(x * x for x in draws) == pytest.approx(duration.second_moment, rel=0.05)
    left = [duration.residual(random) for _ in range(40_000)]
    assert fmean(left) == pytest.approx(duration.second_moment / (2 * duration.mean), rel=0.03)
    for t in (0.5, 2.0, 4.0):
        assert fmean(x <= t for x in left) == pytest.approx(duration.limited(t) / duration.mean, abs=0.01)


@given(st.floats(min_value=-1, max_value=1), st.floats(min_value=0.2, max_value=3), st.floats(0.01, 1_000))
def test_the_closed_form_of_the_log_normal_is_the_integral_of_its_survival(mu: float, sigma: float, t: float) -> None:
    def survival(u: float) -> float:
        return erfc((log(u) - mu) / sigma / sqrt(2)) / 2 if u > 0 else 1.0

    assert LogNormal(mu, sigma).limited(t) == pytest.approx(integral(survival, t), rel=1e-4)


def test_a_trace_is_on_for_its_share_of_the_time_from_its_first_hour_on() -> None:
    trace, random = TRACES["diurnal"], Random(3)
    traces = [list(trace.periods(random, 48.0)) for _ in range(3_000)]
    for moment in (0.5, 24.0, 47.5):
        there = fmean(any(begin <= moment < end for begin, end in periods) for periods in traces)
        assert there == pytest.approx(1 / 3, abs=0.03)
    assert all(0 <= begin < end <= 48 for periods in traces for begin, end in periods)
    assert list(TRACES["always"].periods(random, 5.0)) == [(0.0, 5.0)]


@pytest.mark.parametrize("name", ["seti", "diurnal"])
def test_theory_of_direct_delivery_agrees_with_letters_on_drawn_traces(name: str) -> None:
    trace, random, hours = TRACES[name], Random(11), 200.0
    delays = []
    for _ in range(3_000):
        periods = list(trace.periods(random, hours))
        written = random.uniform(0, hours)
        leaves = next((max(begin, written) for begin, end in periods if end > written), None)
        delays.append(Delay(hours - written, delivered=False) if leaves is None else Delay(leaves - written, True))
    theory = DirectDelivery(trace)
    assert Distribution.of(delays).distance(theory.within) < 0.04
    assert Distribution.of(delays).limited_mean(100.0) == pytest.approx(theory.limited_mean(100.0), rel=0.05)


def test_quantiles_of_theory_invert_its_distribution() -> None:
    seti, diurnal = DirectDelivery(SETI), DirectDelivery(TRACES["diurnal"])
    assert seti.quantile(0.2) == 0.0
    for share in (0.3, 0.5, 0.9):
        assert seti.within(seti.quantile(share)) == pytest.approx(share)
    # A third is on; the rest waits evenly spread over 16 hours.
    assert diurnal.quantile(2 / 3) == pytest.approx(8.0)
    assert diurnal.mean == pytest.approx(2 / 3 * 8)
    assert diurnal.limited_mean(1e3) == pytest.approx(diurnal.mean, rel=1e-3)
    assert DirectDelivery(TRACES["always"]).mean == 0.0


def test_mean_field_formulas_give_the_published_figures() -> None:
    # Two nodes meet directly, whatever the strategy.
    assert epidemic(2, 1.0) == pytest.approx(1.0)
    assert binary_spray(2, 4, 1.0) == pytest.approx(1.0)
    assert epidemic(20, 1.0) == pytest.approx(0.187, abs=0.001)
    assert epidemic(50, 1.0) == pytest.approx(0.091, abs=0.001)
    assert 0.27 <= binary_spray(50, 4, 1.0) <= binary_spray(20, 4, 1.0) <= 0.32
    assert binary_spray(30, 1, 24.0) == pytest.approx(24.0)
    with pytest.raises(ValueError, match="fewer copies than nodes"):
        spray_and_wait_bound(4, 4, 1.0)


@given(st.integers(min_value=6, max_value=60), st.integers(min_value=1, max_value=5))
def test_the_exact_chain_lies_between_epidemic_and_the_published_bound(nodes: int, copies: int) -> None:
    exact = binary_spray(nodes, copies, 1.0)
    assert epidemic(nodes, 1.0) <= exact + 1e-12
    assert exact <= spray_and_wait_bound(nodes, copies, 1.0) + 1e-12


def test_distributions_of_theory_have_their_means() -> None:
    assert integral(lambda t: 1 - direct_meeting_within(24.0, t), 2_000.0) == pytest.approx(24.0, rel=1e-3)
    # The mean field's own mean, ln N / (N - 1), is a little off the exact one.
    assert integral(lambda t: 1 - epidemic_within(51, 1.0, t), 20.0) == pytest.approx(log(50) / 49, rel=1e-3)
    assert epidemic_within(20, 1.0, 1e9) == pytest.approx(1.0)


def test_censored_letters_count_until_they_were_last_seen() -> None:
    # Kaplan and Meier by hand: 1/4 at 1, then one of two at 3.
    found = Distribution.of([Delay(1, True), Delay(2, False), Delay(3, True), Delay(4, False)])
    assert found.steps == ((1, pytest.approx(0.25)), (3, pytest.approx(1 - 0.75 / 2)))
    assert (found.letters, found.delivered, found.horizon) == (4, 2, 4)
    assert found.quantile(0.5) == 3
    assert found.quantile(0.9) is None
    assert found.limited_mean(4) == pytest.approx(1 + 2 * 0.75 + 0.375)


@given(st.lists(st.floats(min_value=0, max_value=50), min_size=1, max_size=40))
def test_without_censoring_it_is_the_plain_share(values: list[float]) -> None:
    found = Distribution.of([Delay(value, True) for value in values])
    for t in (0.0, 1.0, 10.0, *values):
        assert found.within(t) == pytest.approx(sum(value <= t for value in values) / len(values))
    assert found.limited_mean(60.0) == pytest.approx(fmean(values))


def test_distance_is_the_largest_gap_on_either_side_of_a_step() -> None:
    found = Distribution.of([Delay(1.0, True), Delay(2.0, True)])
    assert found.distance(lambda t: min(1.0, t / 2)) == pytest.approx(0.5)
    assert found.distance(lambda _: 1.0, start=2.0) == pytest.approx(0.0)
    assert found.distance(lambda t: 1 - exp(-t)) == pytest.approx(1 - exp(-1))
