from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.letters.sending import (
    MAX_WINDOW,
    MIN_WAIT_S,
    WEIGHTS,
    Flight,
    RoundTrip,
    Run,
    Turns,
    cut_short,
    is_in_doubt,
    plan,
    recalled,
    receipted,
    sample_s,
    under_way,
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


def test_silence_after_silence_asks_with_one_letter_at_a_time_and_says_hello_now_and_then() -> None:
    flight, waits, hellos = plan(Flight(), Run(1, 50), 0.0, 1.0).flight, [], []
    for silence in range(1, 13):
        again = plan(flight, Run(1, 50), flight.since + 3_600.0, 1.0)
        assert again.run == (Run(1, 1) if silence >= 2 else Run(1, 8))
        assert again.due is not None
        waits.append(again.due - again.flight.since)
        if is_in_doubt(flight, again.flight):
            hellos.append(silence)
        flight = again.flight
    assert waits[:4] == [2.0, 4.0, 8.0, 10.0]
    assert set(waits[3:]) == {10.0}
    assert hellos == [2, 3, 4, 5, 6, 9, 12]
    now = flight.since + 1.0
    answered = receipted(flight, 1, now)
    assert plan(answered, Run(2, 50), now, 1.0).run == Run(2, 6)


def test_no_wait_is_shorter_than_a_receipt_takes() -> None:
    flight = plan(Flight(silences=9), Run(1, 5), 0.0, 25.0)
    assert flight.due == 25.0


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


def test_only_a_letter_that_was_sent_once_tells_the_round_trip() -> None:
    flight = plan(Flight(), Run(1, 5), 10.0, 1.0).flight
    assert sample_s(flight, 4, 12.0) is None
    assert sample_s(flight, 5, 12.0) == 2.0
    flight = receipted(flight, 5, 12.0)
    assert flight.timed == 0
    # Receipts that come every 250 ms say nothing of a way of 4 s.
    flight = plan(flight, Run(6, 9), 12.0, 1.0).flight
    assert sample_s(receipted(flight, 8, 12.2), 9, 16.0) == 4.0
    again = plan(flight, Run(6, 9), 20.0, 1.0)
    assert again.run == Run(6, 9)
    assert sample_s(again.flight, 9, 21.0) is None


def test_while_the_link_holds_what_was_sent_the_wait_has_not_begun() -> None:
    flight = plan(Flight(), Run(1, 5), 0.0, 1.0).flight
    assert plan(under_way(flight, 30.0), Run(1, 5), 30.5, 1.0).run is None
    assert plan(under_way(flight, 30.0), Run(1, 5), 31.0, 1.0).run == Run(1, 5)
    assert under_way(Flight(), 30.0) == Flight()


def test_a_bad_link_narrows_the_window() -> None:
    wide = plan(Flight(window=100), Run(1, 200), 0.0, 1.0)
    assert wide.run == Run(1, 100)
    assert plan(Flight(window=100), Run(1, 200), 0.0, 1.0, granted=8).run == Run(1, 8)


@given(st.lists(st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)), min_size=60, max_size=120))
def test_normal_and_bulk_share_what_control_leaves(sizes: list[tuple[int, int]]) -> None:
    turns, had = Turns(), {"normal": 0, "bulk": 0}
    for normal, bulk in sizes:
        lane = turns.next(["normal", "bulk"])
        size = normal if lane == "normal" else bulk
        had[lane] += size
        turns = turns.charged(lane, size, ["normal", "bulk"])
    largest = 60_000
    assert abs(had["normal"] / WEIGHTS["normal"] - had["bulk"]) <= 2 * largest


def test_a_lane_that_was_idle_saves_nothing_up() -> None:
    turns = Turns()
    for _ in range(1_000):
        turns = turns.charged("normal", 1_000, ["normal"])
    order = []
    for _ in range(10):
        lane = turns.next(["normal", "bulk"])
        order.append(lane)
        turns = turns.charged(lane, 1_000, ["normal", "bulk"])
    assert order.count("bulk") == 2
