from __future__ import annotations

from random import Random
from statistics import fmean

import pytest

from causeway.simulate.meetings import HOUR_S, STRATEGIES, Journey, World, travel
from causeway.simulate.statistics import Distribution
from causeway.simulate.theory import binary_spray, epidemic
from schemas.bundles import MAX_COPIES, MAX_LIFETIME_S

WORLD = World(nodes=20, mean_meeting=24.0)


def test_every_pair_meets_at_its_rate() -> None:
    meetings, seen = World(5, 2.0).meetings(Random(1)), []
    while not seen or seen[-1][0] < 4_000:
        seen.append(next(meetings))
    pair = [at for at, *who in seen if set(who) == {1, 4}]
    assert 4_000 / len(pair) == pytest.approx(2.0, rel=0.05)
    assert all(first != second for _, first, second in seen)


def test_strategies_take_as_long_as_theory_says() -> None:
    found = travel(WORLD, 1_500, Random(5))
    mean = {name: fmean(delay.hours for delay in each.delays) / WORLD.mean_meeting for name, each in found.items()}
    assert mean["direct"] == pytest.approx(1.0, rel=0.08)
    assert mean["spray and wait"] == pytest.approx(binary_spray(20, MAX_COPIES, 1.0), rel=0.08)
    assert mean["epidemic"] == pytest.approx(epidemic(20, 1.0), rel=0.08)
    assert found["direct"].handed_over == 1.0
    assert found["spray and wait"].handed_over <= MAX_COPIES
    assert found["epidemic"].handed_over > MAX_COPIES
    assert Distribution.of(found["direct"].delays).delivered == 1_500


def test_the_same_seed_gives_the_same_journeys() -> None:
    assert travel(WORLD, 20, Random(2)) == travel(WORLD, 20, Random(2))


def test_copies_are_halved_and_the_last_one_waits_for_the_gateway() -> None:
    journey = Journey.begin(World(6, 1.0), STRATEGIES["spray and wait"])
    journey.meet(0.1, 0, 1)
    journey.meet(0.2, 1, 2)
    assert {node: carried.copies for node, carried in journey.held.items()} == {0: 2, 1: 1, 2: 1}
    journey.meet(0.3, 2, 3)
    assert 3 not in journey.held
    journey.meet(0.4, 5, 2)
    assert journey.delivered_at == 0.4
    assert journey.handed_over == 3


def test_a_letter_whose_life_is_over_goes_nowhere() -> None:
    journey = Journey.begin(World(3, 1.0), 4)
    journey.meet(MAX_LIFETIME_S / HOUR_S + 1, 0, 2)
    assert journey.delivered_at is None


@pytest.mark.parametrize(("nodes", "mean"), [(1, 1.0), (5, 0.0)])
def test_a_world_needs_two_nodes_and_time(nodes: int, mean: float) -> None:
    with pytest.raises(ValueError, match="take at least 2"):
        World(nodes, mean)
