from __future__ import annotations

import contextlib
import gc
import json
import os

import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.mutations import damaged
from tests.fuzz.targets import Target, targets

LONG = bool(os.environ.get("LONG_TESTS"))
TARGETS = targets()
CHUNK = 500 if LONG else 100
TOTAL = 120_000 if LONG else 100 * len(TARGETS)
CHUNKS = -(-TOTAL // len(TARGETS) // CHUNK)
GROWTH_MB = 24
"""What caches and the allocator may keep."""


def fuzz(target: Target, number: int) -> int:
    """One chunk of inputs; returns how many."""
    count = 0

    @seed(number)
    @settings(
        max_examples=CHUNK,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(target.seeds))
    def refuses_or_understands(raw: bytes) -> None:
        nonlocal count
        count += 1
        with contextlib.suppress(*target.refusals):
            target.parse(raw)

    refuses_or_understands()
    return count


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_understood(name: str) -> None:
    target = TARGETS[name]
    understood = 0
    for raw in target.seeds:
        try:
            target.parse(raw)
            understood += 1
        except target.refusals:
            continue
    assert understood >= target.expected, "damage to what is refused anyhow proves little"


@pytest.mark.timeout(3_600 if LONG else 180)
@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_understood_or_refused(name: str, request: pytest.FixtureRequest) -> None:
    process, target = psutil.Process(), TARGETS[name]
    fuzz(target, 0)
    gc.collect()
    before = process.memory_info().rss
    inputs = sum(fuzz(target, number) for number in range(1, CHUNKS + 1))
    gc.collect()
    grown_mb = (process.memory_info().rss - before) / (1 << 20)
    request.node.user_properties.append(("inputs", inputs))
    assert grown_mb < GROWTH_MB, f"{inputs} inputs left {grown_mb:.1f} MB behind"


def test_a_parser_that_breaks_is_found() -> None:
    def careless(raw: bytes) -> object:
        return json.loads(raw)["data"]

    with pytest.raises(Exception, match=r".") as found:
        fuzz(Target(careless, (b'{"data": 1}',)), 1)
    assert not isinstance(found.value, AssertionError)
