from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from causeway.audit.compare import Dropped, Effect, Issued, Stored, compare


def issued(sequence: int) -> Issued:
    return Issued("cam-1", "E", "normal", sequence, f"L{sequence}", "report")


def stored(sequence: int) -> Stored:
    return Stored("cam-1", "E", "normal", sequence, f"L{sequence}", "report")


@given(st.integers(1, 30), st.data())
def test_a_missing_letter_is_always_found(count: int, data: st.DataObject) -> None:
    missing = data.draw(st.sets(st.integers(1, count)))
    audit = compare(
        map(issued, range(1, count + 1)), [], [stored(n) for n in range(1, count + 1) if n not in missing], []
    )
    assert audit.letters_sent == count
    assert audit.letters_lost == len(missing)


@given(st.lists(st.integers(1, 8), max_size=20))
def test_a_double_is_always_found(arrivals: list[int]) -> None:
    audit = compare([], [], map(stored, arrivals), [])
    assert (audit.letters_applied_twice == 0) == (len(set(arrivals)) == len(arrivals))


def test_what_policy_dropped_is_not_lost() -> None:
    audit = compare([issued(1), issued(2)], [Dropped("cam-1", "E", "normal", 1, 1)], [stored(2)], [])
    assert (audit.letters_lost, audit.letters_dropped_by_policy) == (0, 1)


def test_a_renumbered_letter_is_not_lost() -> None:
    audit = compare([issued(1)], [], [replace(stored(1), epoch="F", sequence=9)], [])
    assert audit.letters_lost == 0


def test_one_thing_changed_by_two_letters_is_twice() -> None:
    effects = [Effect("update j/1/cam-1", "L1"), Effect("update j/1/cam-1", "L2")]
    assert compare([], [], [], effects).letters_applied_twice == 1


def test_one_letter_with_two_effects_is_twice() -> None:
    effects = [Effect("report r/cam-1/1", "L1"), Effect("report r/cam-1/2", "L1")]
    assert compare([], [], [], effects).letters_applied_twice == 1


def test_disorder_is_found_per_lane() -> None:
    urgent = replace(stored(1), lane="control", letter="U1")
    assert compare([], [], [stored(2), urgent, stored(1)], []).letters_out_of_order == 1
