from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.letters.sending import (
    MAX_WINDOW,
    MIN_WAIT_S,
    Flight,
    RoundTrip,
    Run,
    cut_short,
    plan,
    recalled,
    receipted,
)


def held_above(letters: set[int], mark: int) -> Run | None:
    above = sorted(n for n in letters if n > mark)
    if not above:
        return None
    last = above[0]
    while last + 1 in letters:
        last += 1
    return Run(above[0], last)


@given(
    st.integers(1, 60),
    st.sets(st.integers(1, 60), max_size=10),
    st.lists(st.booleans(), max_size=400),
    st.lists(st.booleans(), max_size=400),
)
def test_over_any_lossy_link_every_held_letter_arrives_once_and_in_order(
    issued: int, given_up: set[int], up: list[bool], down: list[bool]
) -> None:
    """The courier admits mark + 1 after skipping below the floor; either direction loses what it likes for a while."""
    letters = set(range(1, issued + 1)) - given_up
    flight, mark, arrived, now = Flight(), 0, [], 0.0
    ups, downs = iter(up), iter(down)
    for _ in range(1_500):
        held = held_above(letters, flight.mark)
        decision = plan(flight, held, now, 1.0)
        flight = decision.flight
        if decision.run is not None:
            floor = held.first
            for sequence in range(decision.run.first, decision.run.last + 1):
                if not next(ups, True):
                    continue
                mark = max(mark, floor - 1)
                if sequence == mark + 1:
                    mark = sequence
                    arrived.append(sequence)
        if next(downs, True):
            flight = receipted(flight, mark, now)
        now += 0.7
        if held_above(letters, flight.mark) is None:
            break
    assert arrived == sorted(letters)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, MAX_WINDOW))
def test_the_window_bounds_what_is_on_its_way(mark: int, more: int, window: int) -> None:
    decision = plan(Flight(mark=mark, sent=mark, window=window), Run(mark + 1, mark + 1 + more), 0.0, 1.0)
    assert decision.run is not None
    assert decision.run.last - mark <= window


def test_silence_goes_back_and_waits_longer_each_time() -> None:
    flight = plan(Flight(), Run(1, 5), 0.0, 1.0).flight
    assert plan(flight, Run(1, 5), 0.9, 1.0).run is None
    again = plan(flight, Run(1, 5), 1.0, 1.0)
    assert again.run == Run(1, 5)
    assert again.due == 3.0


def test_a_gap_is_not_crossed_before_the_letters_in_front_are_receipted() -> None:
    flight = plan(Flight(), Run(1, 3), 0.0, 1.0).flight
    assert flight.sent == 3
    assert plan(receipted(flight, 3, 0.1), Run(9, 12), 0.1, 1.0).run == Run(9, 12)


def test_a_mark_that_goes_backwards_sends_again_what_is_kept() -> None:
    flight = receipted(Flight(mark=10, sent=12), 4, 0.0)
    assert plan(flight, Run(5, 12), 0.0, 1.0).run == Run(5, 12)


@given(st.integers(0, 50), st.integers(1, 100))
def test_a_recall_sends_again_and_never_passes_over_a_letter(mark: int, first: int) -> None:
    flight = recalled(Flight(mark=mark, sent=mark), first, now=0.0)
    assert flight.mark == min(mark, first - 1)
    assert plan(flight, Run(flight.mark + 1, 100), 0.0, 1.0).run is not None


def test_what_the_link_did_not_take_goes_next_time() -> None:
    flight = cut_short(plan(Flight(), Run(1, 9), 0.0, 1.0).flight, 4)
    assert plan(flight, Run(1, 9), 0.0, 1.0).run == Run(5, 9)


def test_progress_widens_the_window() -> None:
    assert receipted(Flight(sent=16), 16, 0.0).window == 32


@given(st.lists(st.floats(0.001, 100), max_size=30))
def test_the_wait_is_bounded(samples: list[float]) -> None:
    trip = RoundTrip()
    for sample in samples:
        trip = trip.with_sample(sample)
    assert MIN_WAIT_S <= trip.wait_s <= 30.0
