from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.link.liveness import MAX_SILENCE_S, MAX_UNANSWERED_S, MIN_SILENCE_S, PING_S, Pulse, judge
from edge_runtime.link.measuring import (
    MAX_BACKLOG_BYTES,
    MIN_BACKLOG_BYTES,
    MIN_SENT,
    START_BACKLOG_BYTES,
    LossMeter,
    Throughput,
)

samples = st.tuples(st.integers(0, 10**9), st.floats(0, 100), st.booleans())


@given(st.lists(samples, max_size=40), st.floats(0, 60))
def test_whatever_is_measured_the_backlog_stays_within_its_bounds(measured, round_trip_s) -> None:
    throughput = Throughput()
    for delivered, took_s, limited in measured:
        throughput = throughput.with_sample(delivered, took_s, limited=limited)
    assert MIN_BACKLOG_BYTES <= throughput.backlog_bytes(round_trip_s) <= MAX_BACKLOG_BYTES


def test_what_waits_is_worth_a_second_of_the_link() -> None:
    assert Throughput().backlog_bytes(0.02) == START_BACKLOG_BYTES
    slow = Throughput()
    for _ in range(20):
        slow = slow.with_sample(20_000, 1.0, limited=True)
    assert slow.backlog_bytes(0.0) == pytest.approx(20_000)
    assert slow.backlog_bytes(0.5) == pytest.approx(40_000)


def test_a_link_that_became_slow_is_believed_soon_and_a_burst_only_by_degrees() -> None:
    fast = Throughput(1e6)
    for _ in range(10):
        fast = fast.with_sample(6_000, 1.0, limited=True)
    assert fast.bytes_per_s < 50_000
    assert Throughput(1_000).with_sample(10**7, 0.05, limited=True).bytes_per_s == 2_000


def test_a_sender_with_little_to_say_learns_nothing_bad_about_the_link() -> None:
    assert Throughput(50_000).with_sample(100, 1.0, limited=False).bytes_per_s == 50_000
    assert Throughput().with_sample(100, 1.0, limited=False).bytes_per_s is None


def test_the_share_of_repetitions_fades_and_needs_some_evidence() -> None:
    meter = LossMeter().with_totals(MIN_SENT - 1, 5)
    assert meter.ratio is None
    meter = meter.with_totals(100, 30)
    assert meter.ratio == pytest.approx(0.3, abs=0.03)
    meter = meter.with_totals(1_000, 30)
    assert meter.ratio < 0.01
    again = meter.with_totals(50, 50)  # a new connection counts from nought
    assert 0.2 < again.ratio < 0.5


@given(st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 1_000)), max_size=30))
def test_the_share_is_a_share(counts) -> None:
    meter, sent, again = LossMeter(), 0, 0
    for more, repeated in counts:
        sent, again = sent + more, again + min(more, repeated)
        meter = meter.with_totals(sent, again)
        assert meter.ratio is None or 0.0 <= meter.ratio <= 1.0


@pytest.mark.parametrize(
    ("pulse", "verdict"),
    [
        (Pulse(heard=100, spoke=100, acknowledged=None, pinged=None, round_trip_s=0.1), "fine"),
        (Pulse(heard=100 - PING_S, spoke=100, acknowledged=None, pinged=None, round_trip_s=0.1), "ping"),
        (Pulse(heard=100, spoke=100 - PING_S, acknowledged=None, pinged=None, round_trip_s=0.1), "ping"),
        # Black-holed: the ping is the last thing that happened.
        (Pulse(heard=40, spoke=60, acknowledged=40, pinged=60, round_trip_s=0.1), "gone"),
        (Pulse(heard=40, spoke=60, acknowledged=40, pinged=100 - MIN_SILENCE_S, round_trip_s=0.1), "fine"),
        # A piece of a minute holds the answer back, but its bytes come in.
        (Pulse(heard=99, spoke=20, acknowledged=99, pinged=20, round_trip_s=0.1), "fine"),
        # A far link gets more time, but not for ever.
        (Pulse(heard=40, spoke=60, acknowledged=40, pinged=60, round_trip_s=4.0), "fine"),
        (Pulse(heard=0, spoke=0, acknowledged=None, pinged=99 - MAX_SILENCE_S, round_trip_s=60.0), "gone"),
        # The other end's kernel lives, its program does not.
        (Pulse(heard=-99, spoke=0, acknowledged=99, pinged=99 - MAX_UNANSWERED_S, round_trip_s=0.1), "gone"),
        (Pulse(heard=0, spoke=0, acknowledged=99, pinged=1, round_trip_s=0.1), "fine"),
    ],
)
def test_when_the_other_end_counts_as_gone(pulse, verdict) -> None:
    assert judge(pulse, 100.0) == verdict
