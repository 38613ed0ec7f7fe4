"""A few devices, a few seconds: real MQTT, real outboxes, and what the command says of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from causeway.cli.main import app
from causeway.simulate.run import Outcome, Scenario, simulate
from causeway.simulate.statistics import Distribution
from causeway.simulate.theory import DirectDelivery


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return Scenario(devices=6, trace="diurnal", hours=36.0, speed=21_600.0, letters_per_hour=1.0, seed=4)


@pytest.fixture(scope="module")
def outcome(scenario: Scenario) -> Outcome:
    return asyncio.run(simulate(scenario, lambda _: None))


def test_what_was_written_while_there_was_a_link_is_there_and_nothing_twice(
    scenario: Scenario, outcome: Outcome
) -> None:
    assert outcome.written > 100
    assert outcome.twice == outcome.strangers == 0
    at_once = Distribution.of(outcome.connected)
    assert at_once.letters > 20
    # In seconds of the clock: most go within the round trip of a loopback.
    median = at_once.quantile(0.5)
    assert median is not None
    assert median / scenario.hours_per_s < 0.5


def test_delays_follow_the_off_times_of_the_trace(scenario: Scenario, outcome: Outcome) -> None:
    delays, possible = Distribution.of(outcome.delays), Distribution.of(outcome.possible)
    assert 0 < delays.delivered <= possible.delivered < delays.letters
    assert delays.distance(possible.within, scenario.hours_per_s) < 0.1
    # Six devices have six phases only, so that the share of time with a link is a rough one.
    assert delays.distance(DirectDelivery(scenario.availability).within, scenario.hours_per_s) < 0.35
    longest = max(delay.hours for delay in outcome.delays if delay.delivered)
    assert 8.0 < longest < 16.0 + 2 * scenario.hours_per_s


def test_the_command_prints_both_parts_and_draws_them(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "delays.png"
    command = ["simulate", "--devices", "2", "--trace", "always", "--hours", "2", "--speed", "3600"]
    more = ["--letters-per-hour", "4", "--carriers", "10", "--png", str(picture), "--json"]
    result = CliRunner().invoke(app, [*command, *more])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    links, carriers = report["links"], report["carriers"]
    assert links["delivered"] == links["letters"] > 0
    assert links["hours"]["within_resolution"]["theory"] == 1.0
    assert "real MQTT" in links["what"]
    assert "no network" in carriers["what"]
    found = carriers["strategies"]
    assert found["epidemic"]["units"] < found["spray and wait"]["units"] < found["direct"]["units"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_carrier_alone_is_refused() -> None:
    result = CliRunner().invoke(app, ["simulate", "--carriers", "1"])
    assert result.exit_code == 2
    assert "meets nobody" in result.stderr
