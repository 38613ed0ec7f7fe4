"""Time on a device whose system clock may stand anywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.clock import LOOK_AGAIN_S, UNSURE_LIFE, FlooredClock
from schemas.events import utc

TRUE = datetime(2026, 11, 22, tzinfo=UTC)
Y1970, Y2040 = 60.0, datetime(2040, 1, 1, tzinfo=UTC).timestamp()
WEEK = timedelta(days=7)


class World:
    def __init__(self, system: float, floor: datetime | None = None, *, synchronised: bool = False) -> None:
        self.system, self.floor, self.synchronised, self.running = system, floor, synchronised, 1_000.0
        self.clock = FlooredClock(
            lambda: self.floor, lambda: self.system, lambda: self.synchronised, lambda: self.running
        )

    def pass_s(self, seconds: float) -> None:
        self.running += seconds
        self.system += seconds


def test_without_any_proof_the_system_is_the_only_guess() -> None:
    world = World(Y2040)
    assert world.clock.now() == utc(Y2040)
    assert world.clock.certainly_past() is None
    assert not world.clock.known
    assert world.clock.life(WEEK) == UNSURE_LIFE


def test_a_floor_lifts_1970_and_does_not_believe_2040() -> None:
    assert World(Y1970, TRUE).clock.now() == TRUE
    world = World(Y2040, TRUE)
    assert world.clock.now() == utc(Y2040)
    assert world.clock.certainly_past() == TRUE  # nothing is expired because a clock runs ahead


@given(st.sampled_from([Y1970, Y2040]), st.lists(st.floats(-1e9, 1e9), max_size=5))
def test_an_answer_of_the_platform_sets_the_time_and_jumps_do_not_move_it(system, jumps) -> None:
    world = World(system, TRUE - timedelta(days=3))
    assert world.clock.anchor("key", TRUE)
    assert world.clock.known
    for number, jump in enumerate(jumps, 1):
        world.pass_s(10.0)
        world.system += jump
        assert abs((world.clock.now() - TRUE).total_seconds() - 10.0 * number) < 1e-3
        assert world.clock.certainly_past() == world.clock.now()
    assert world.clock.life(WEEK) == WEEK


def test_of_several_answers_the_one_that_took_least_time_counts() -> None:
    world = World(Y1970)
    world.clock.anchor("key", TRUE - timedelta(seconds=8))
    assert not world.clock.anchor("key", TRUE)
    world.clock.anchor("key", TRUE - timedelta(seconds=3))
    assert world.clock.now() == TRUE


def test_a_key_that_is_no_longer_listed_takes_its_time_with_it() -> None:
    world = World(Y1970, TRUE)
    world.clock.anchor("stolen", utc(Y2040))
    world.clock.anchor("good", TRUE)
    world.clock.keep_anchors({"good"})
    assert world.clock.now() == TRUE
    world.clock.keep_anchors(set())
    assert not world.clock.known


def test_a_synchronised_clock_is_believed_whatever_was_signed() -> None:
    world = World(TRUE.timestamp(), utc(Y2040), synchronised=True)
    world.clock.anchor("key", utc(Y2040))
    assert world.clock.now() == TRUE
    assert world.clock.certainly_past() == TRUE
    world.synchronised = False
    assert world.clock.now() == TRUE  # asked again only now and then
    world.pass_s(LOOK_AGAIN_S)
    assert world.clock.now() > TRUE + WEEK
