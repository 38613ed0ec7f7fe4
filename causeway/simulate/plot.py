"""A picture of a simulation. Needs matplotlib, which nothing else here does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from causeway.simulate.meetings import World
from causeway.simulate.run import Outcome, Scenario
from causeway.simulate.statistics import Distribution
from causeway.simulate.theory import DirectDelivery, direct_meeting_within, epidemic_within
from services.kit.errors import SettingsError

_POINTS = 400
_SIZE = (11.0, 4.5)
_DPI = 130
_LEAST_HOURS = 1e-3


def require_plotting() -> Callable[..., Any]:
    """The function that makes figures, before a long run rather than after it.

    Raises:
        SettingsError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SettingsError(
            "draw a picture: matplotlib is not installed; `pip install 'causeway[plot]'`, or leave --png out"
        ) from error
    figure: Callable[..., Any] = Figure
    return figure


def plot(
    path: Path,
    scenario: Scenario,
    outcome: Outcome,
    world: World | None,
    carriers: Mapping[str, tuple[Distribution, float]],
) -> None:
    """Write a PNG: P(delay <= t), simulated and by theory, and beside it what carriers make of it.

    Raises:
        SettingsError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    figure = require_plotting()(figsize=_SIZE, layout="constrained")
    axes = figure.subplots(1, 1 if world is None else 2, squeeze=False)[0]
    _links(axes[0], scenario, outcome)
    if world is not None:
        _carriers(axes[1], world, carriers)
    figure.savefig(path, format="png", dpi=_DPI)


def _links(axes: Any, scenario: Scenario, outcome: Outcome) -> None:
    measured, theory = Distribution.of(outcome.delays), DirectDelivery(scenario.availability)
    possible = Distribution.of(outcome.possible)
    times = [_LEAST_HOURS * (scenario.hours / _LEAST_HOURS) ** (point / (_POINTS - 1)) for point in range(_POINTS)]
    axes.plot(times, [theory.within(t) for t in times], "k--", label="theory: renewal process")
    axes.step(times, [possible.within(t) for t in times], "k:", where="post", label="this trace, and no other delay")
    axes.step(times, [measured.within(t) for t in times], where="post", label="simulated: real MQTT")
    axes.set_xscale("log")
    _label(axes, f"trace {scenario.trace}, {scenario.devices} devices, {outcome.written} letters")


def _carriers(axes: Any, world: World, carriers: Mapping[str, tuple[Distribution, float]]) -> None:
    end = max(distribution.steps[-1][0] for distribution, _ in carriers.values() if distribution.steps)
    times = [end * point / (_POINTS - 1) for point in range(_POINTS)]
    axes.plot(
        times, [direct_meeting_within(world.mean_meeting, t) for t in times], "k:", label="theory: direct, exponential"
    )
    axes.plot(
        times,
        [epidemic_within(world.nodes, world.mean_meeting, t) for t in times],
        "k--",
        label="theory: epidemic, mean field",
    )
    for name, (distribution, _) in carriers.items():
        steps = [(0.0, 0.0), *distribution.steps]
        axes.step([at for at, _ in steps], [share for _, share in steps], where="post", label=name)
    axes.set_xlim(left=0)
    _label(axes, "carriers: simulated meetings")


def _label(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("delay in hours of the trace")
    axes.set_ylabel("share of letters delivered")
    axes.set_ylim(0, 1)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
