from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.courier.up.ordering import Gap, LaneKey, Slip, Verdict, parse_message_id, rule

LANE = LaneKey("harbour", "cam-1", "01J", "normal")
SEQUENCES = st.lists(st.integers(min_value=1, max_value=12), max_size=60)
SLIPS = st.lists(
    st.integers(min_value=1, max_value=12).flatmap(
        lambda n: st.builds(Slip, st.just(LANE), st.just(n), st.integers(min_value=1, max_value=n))
    ),
    max_size=60,
)


@given(SEQUENCES)
def test_whatever_arrives_each_letter_enters_once_and_in_order(arrivals: list[int]) -> None:
    marks: dict[LaneKey, int] = {}
    entered: list[int] = []
    for sequence in arrivals:
        ruling = rule([Slip(LANE, sequence)], marks)
        marks.update(ruling.marks)
        entered += [sequence] * (ruling.verdicts == (Verdict.ADMIT,))
    assert entered == list(range(1, len(entered) + 1))


@given(SLIPS)
def test_with_floors_every_number_is_either_entered_or_reported_lost_and_never_both(slips: list[Slip]) -> None:
    ruling = rule(slips, {})
    entered = [s.sequence for s, verdict in zip(slips, ruling.verdicts, strict=True) if verdict is Verdict.ADMIT]
    lost = [n for gap in ruling.gaps for n in range(gap.first, gap.last + 1)]
    assert entered == sorted(set(entered))
    assert sorted(entered + lost) == list(range(1, ruling.marks.get(LANE, 0) + 1))


@given(SLIPS, st.integers(min_value=0, max_value=60))
def test_the_cut_into_batches_changes_nothing(slips: list[Slip], cut: int) -> None:
    whole = rule(slips, {})
    first = rule(slips[:cut], {})
    second = rule(slips[cut:], first.marks)
    assert whole.verdicts == first.verdicts + second.verdicts
    assert whole.gaps == first.gaps + second.gaps


def test_lanes_do_not_wait_for_each_other() -> None:
    urgent = LaneKey(LANE.fleet, LANE.device, LANE.epoch, "control")
    assert rule([Slip(LANE, 2), Slip(urgent, 1)], {}).verdicts == (Verdict.EARLY, Verdict.ADMIT)


def test_a_floor_lifts_the_mark_even_if_the_letter_is_still_early() -> None:
    ruling = rule([Slip(LANE, 9, floor=5)], {LANE: 2})
    assert ruling.verdicts == (Verdict.EARLY,)
    assert ruling.marks == {LANE: 4}
    assert ruling.gaps == (Gap(LANE, 3, 4),)


def test_a_floor_never_lowers_a_mark() -> None:
    assert rule([Slip(LANE, 5, floor=1)], {LANE: 4}).marks == {LANE: 5}
    assert rule([Slip(LANE, 4, floor=1)], {LANE: 4}).marks == {}


@pytest.mark.parametrize(("sequence", "floor"), [(0, 0), (0, 1), (4, 5), (1, 0)])
def test_a_slip_that_contradicts_itself_cannot_be_built(sequence: int, floor: int) -> None:
    with pytest.raises(ValueError, match="cam-1 needs 1 <= floor <= sequence"):
        Slip(LANE, sequence, floor)


@given(st.integers(min_value=1, max_value=2**53))
def test_a_message_id_names_lane_and_sequence_both_ways(sequence: int) -> None:
    assert parse_message_id(LANE.message_id(sequence)) == (LANE, sequence)


@pytest.mark.parametrize("text", ["", "fence:01J", "a:b:c:d:x", "a:b:c:d"])
def test_what_is_no_letter_has_no_lane(text: str) -> None:
    assert parse_message_id(text) is None
