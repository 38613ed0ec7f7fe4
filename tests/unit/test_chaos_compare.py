"""The checker of the chaos finds what was planted: a loss, a double, a swap, a drop that nobody told of."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.compare import (
    Applied,
    Arrived,
    Findings,
    Given,
    Posted,
    Sent,
    compare_boards,
    compare_down,
    compare_effects,
    compare_up,
)

COUNT = 20
numbers = st.integers(1, COUNT)


def sent(count: int = COUNT, lane: str = "normal") -> list[Sent]:
    return [Sent("d1", lane, n, f"{lane}{n}") for n in range(1, count + 1)]


def arrived(count: int = COUNT, lane: str = "normal") -> list[Arrived]:
    return [Arrived("d1", lane, n, f"{lane}{n}", "E", n) for n in range(1, count + 1)]


def posted(count: int = COUNT) -> list[Posted]:
    return [Posted("d1", n, f"L{n}") for n in range(1, count + 1)]


def applied(count: int = COUNT) -> list[Applied]:
    return [Applied("d1", n, f"L{n}", "life 1") for n in range(1, count + 1)]


def told(findings: Findings) -> tuple[int, int, int, int]:
    return findings.lost, findings.applied_twice, findings.out_of_order, findings.drops_not_in_ledger


def test_what_arrived_whole_once_and_in_order_is_clean() -> None:
    findings = compare_up(sent() + sent(lane="bulk"), arrived(lane="bulk") + arrived())
    assert told(findings) == (0, 0, 0, 0)
    assert findings.clean


@given(st.sets(numbers, min_size=1))
def test_every_planted_loss_is_found(gone: set[int]) -> None:
    findings = compare_up(sent(), [a for a in arrived() if a.number not in gone])
    assert told(findings) == (len(gone), 0, 0, 0)
    assert not findings.clean


@given(numbers, st.integers(0, COUNT))
def test_a_planted_double_is_found_wherever_it_comes(number: int, at: int) -> None:
    arrivals = arrived()
    arrivals.insert(at, Arrived("d1", "normal", number, f"normal{number}", "E", 100))
    assert compare_up(sent(), arrivals).applied_twice == 1


def test_two_letters_at_one_place_of_a_lane_are_a_double() -> None:
    arrivals = [*arrived(19), replace(arrived()[19], sequence=19)]
    assert compare_up(sent(), arrivals).applied_twice == 1


def test_a_letter_that_nobody_sent_is_found() -> None:
    assert compare_up(sent(3), arrived(4)).applied_twice == 1
    forged = [*arrived(2), replace(arrived(3)[2], letter="other")]
    assert compare_up(sent(3), forged).applied_twice == 1


@given(st.integers(1, COUNT - 1))
def test_a_planted_swap_is_found(at: int) -> None:
    arrivals = arrived()
    arrivals[at - 1], arrivals[at] = arrivals[at], arrivals[at - 1]
    assert told(compare_up(sent(), arrivals)) == (0, 0, 1, 0)


@given(st.sets(numbers, min_size=1))
def test_drops_in_the_ledger_are_no_losses(gone: set[int]) -> None:
    here = [a for a in arrived() if a.number not in gone]
    dropped = {("d1", "normal"): len(gone)}
    named = [Given("d1", "normal", len(gone), frozenset(f"normal{n}" for n in gone))]
    unnamed = [Given("d1", "normal", len(gone))]
    for ledger in (named, unnamed):
        findings = compare_up(sent(), here, ledger, dropped)
        assert told(findings) == (0, 0, 0, 0)
        assert findings.policy_drops == len(gone)


@given(st.sets(numbers, min_size=2), st.data())
def test_a_drop_that_nobody_told_of_is_found(gone: set[int], data: st.DataObject) -> None:
    silent = data.draw(st.sets(st.sampled_from(sorted(gone)), min_size=1))
    ledger = [Given("d1", "normal", 1, frozenset({f"normal{n}"})) for n in gone - silent]
    here = [a for a in arrived() if a.number not in gone]
    assert told(compare_up(sent(), here, ledger, {("d1", "normal"): len(gone)})) == (0, 0, 0, len(silent))


def test_a_ledger_covers_no_other_lane_and_no_more_than_it_says() -> None:
    here = arrived(18)
    assert compare_up(sent(), here, [Given("d1", "bulk", 2)]).lost == 2
    assert compare_up(sent(), here, [Given("d1", "normal", 1)]).lost == 1
    assert compare_up(sent(), here, [Given("d1", "normal", 1, frozenset({"normal1"}))]).lost == 2


def test_a_letter_named_as_lost_that_arrived_is_told() -> None:
    for maybe in (True, False):
        findings = compare_up(
            sent(), arrived(), [Given("d1", "normal", 1, frozenset({"normal3"}), maybe_arrived=maybe)]
        )
        assert findings.dropped_but_arrived == 1
        assert findings.denied_but_arrived == (not maybe), "a ledger may not deny what was sent"
        assert findings.clean == maybe


def test_effects_are_held_against_what_is_stored() -> None:
    assert told(compare_effects(arrived(), arrived(), "normal")) == (0, 0, 0, 0)
    assert compare_effects(arrived(19), arrived(), "normal").lost == 1
    assert compare_effects([*arrived(), arrived()[3]], arrived(), "normal").applied_twice == 1


@given(st.sets(numbers, min_size=1))
def test_losses_down_are_found(gone: set[int]) -> None:
    findings = compare_down(posted(), [a for a in applied() if a.number not in gone])
    assert told(findings) == (len(gone), 0, 0, 0)


def test_doubles_down_are_found() -> None:
    assert compare_down(posted(), [*applied(), Applied("d1", 5, "another", "life 1")]).applied_twice == 1
    again = Applied("d1", 5, "L5", "life 1", effect=False)
    assert compare_down(posted(), [*applied(), again]).applied_twice == 1, "a handler ran twice in one life"
    assert compare_down(posted(), [*applied(), replace(again, life="life 2")]).clean, "after a crash it may run again"
    assert compare_down(posted(3), applied(4)).applied_twice == 1, "nobody posted it"


def test_a_board_shows_the_newest_and_never_goes_back() -> None:
    some = [a for a in applied() if a.number % 3 == 0 or a.number == COUNT]
    assert compare_boards(posted(), some).clean, "those between may be replaced on their way"
    assert compare_boards(posted(), some[:-1]).lost == 1
    assert compare_boards(posted(), [*some, some[-1]]).applied_twice == 1
    assert compare_boards(posted(), [*some, some[0]]).out_of_order == 1


def test_a_letter_down_that_was_overtaken_is_told_and_no_fault() -> None:
    runs = applied()
    runs[3], runs[4] = runs[4], runs[3]
    findings = compare_down(posted(), runs)
    assert findings.clean
    assert findings.down_overtaken == 1


def test_findings_add_up() -> None:
    both = compare_up(sent(), arrived(18)) + compare_down(posted(), applied(19))
    assert both.lost == 3
    assert len(both.examples["lost"]) == 3
