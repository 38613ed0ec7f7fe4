"""`causeway simulate`: how long letters take when links come and go."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from causeway.cli.common import EXIT_USAGE, Json, console, errors, explained, fail, print_json, table
from causeway.cli.options import number, whole
from causeway.simulate.meetings import World, travel
from causeway.simulate.plot import plot, require_plotting
from causeway.simulate.report import links_report, meetings_report
from causeway.simulate.run import Scenario
from causeway.simulate.run import simulate as run_simulation
from causeway.simulate.statistics import Distribution
from services.kit import logs

CARRIED_LETTERS = 1_000
MAX_DEVICES = 2_000


class Trace(StrEnum):
    """When devices have a link."""

    SETI = "seti"
    DIURNAL = "diurnal"
    ALWAYS = "always"


def simulate(
    devices: Annotated[int, whole("--devices", text="How many.", high=MAX_DEVICES)] = 50,
    trace: Annotated[Trace, typer.Option("--trace", help="When they have a link.")] = Trace.SETI,
    hours: Annotated[float, number("--hours", text="Length of the trace.", low=0.01)] = 168.0,
    speed: Annotated[float, number("--speed", text="Hours of the trace per hour of the clock.", low=1)] = 3_600.0,
    letters_per_hour: Annotated[
        float, number("--letters-per-hour", text="Each device writes, in hours of the trace.", low=0.0001)
    ] = 0.2,
    carriers: Annotated[
        int, whole("--carriers", text="Also simulate delivery by so many devices that meet; 0: no.", low=0)
    ] = 0,
    meeting_hours: Annotated[
        float, number("--meeting-hours", text="Mean time until two given carriers meet.", low=0.001)
    ] = 24.0,
    seed: Annotated[int, whole("--seed", text="The same seed gives the same trace.", low=0)] = 1,
    png: Annotated[Path | None, typer.Option("--png", help="Draw the distributions into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how long letters take on a trace, beside theory: real devices' outboxes, real MQTT, compressed time.

    Example: causeway simulate --devices 50 --trace seti --carriers 20 --png delays.png
    """
    logs.configure("simulate", "ERROR")
    scenario = Scenario(devices, trace.value, hours, speed, letters_per_hour, seed)
    if png is not None and not png.absolute().parent.is_dir():
        fail(f"draw into {png}: there is no folder {png.absolute().parent}; make it, or name another file", EXIT_USAGE)
    if carriers == 1:
        fail("simulate carriers: one alone meets nobody; take at least 2, or 0 for none", EXIT_USAGE)
    with explained():
        world = World(carriers, meeting_hours) if carriers else None
        if png is not None:
            require_plotting()
        outcome = asyncio.run(run_simulation(scenario, lambda line: errors.print(f"[dim]{line}[/]")))
        carried: dict[str, tuple[Distribution, float]] = {}
        if world is not None:
            found = travel(world, CARRIED_LETTERS, Random(seed))  # noqa: S311 - a simulation is to be repeated
            carried = {name: (Distribution.of(each.delays), each.handed_over) for name, each in found.items()}
        report: dict[str, Any] = {
            "devices": devices,
            "trace": trace.value,
            "hours": hours,
            "speed": speed,
            "seed": seed,
            "links": links_report(scenario, outcome),
            "carriers": None if world is None else meetings_report(world, carried),
        }
        if png is not None:
            plot(png, scenario, outcome, world, carried)
    if as_json:
        print_json(report)
        return
    _show_links(report["links"])
    if report["carriers"] is not None:
        _show_meetings(report["carriers"])
    if png is not None:
        console.print(f"drawn into {png}")


def _show_links(links: dict[str, Any]) -> None:
    console.print(f"links: {links['what']}", soft_wrap=True)
    rows = []
    for name, both in links["hours"].items():
        share = name.startswith("within")
        units = None if share or links["units"] is None else links["units"][name]
        rows.append(
            (
                name.replace("_", " "),
                _figure(both["simulated"], share=share),
                _figure(both["theory"], share=share),
                "-" if units is None else _figure(units["simulated"]),
                "-" if units is None else _figure(units["theory"]),
            )
        )
    columns = ("delay", "hours", "theory", "mean off-times", "theory")
    table(f"{links['letters']} letters, {links['delivered']} delivered in time; {links['source']}", columns, rows)
    console.print(
        f"link there {links['share_on']:.0%} of the time; mean up to the end of the run, over all time theory says "
        f"{links['whole_mean_hours']:.1f} h; '>' is beyond the run",
        soft_wrap=True,
    )
    for name, what in (
        ("connected", "written while connected"),
        ("after_waiting", "waited, then from the link's return"),
    ):
        found = links[name]
        console.print(
            f"{what}: {found['letters']} letters, in real time p50 {_figure(found['p50_ms'])} ms, "
            f"p99 {_figure(found['p99_ms'])} ms",
            soft_wrap=True,
        )
    console.print(
        f"largest difference beyond {links['resolution_hours']:.2f} h: to theory {links['largest_difference']:.3f}, "
        f"to what this trace allows {links['largest_difference_to_trace']:.3f}; stored twice {links['twice']}",
        soft_wrap=True,
    )


def _show_meetings(meetings: dict[str, Any]) -> None:
    console.print(f"carriers: {meetings['what']}", soft_wrap=True)
    rows = [
        (
            name,
            _figure(found["mean_hours"]),
            _figure(found["p50_hours"]),
            _figure(found["p99_hours"]),
            _figure(found["units"]),
            _figure(found["theory_units"]),
            f"{found['handed_over']:.1f}",
        )
        for name, found in meetings["strategies"].items()
    ]
    columns = ("strategy", "mean h", "p50 h", "p99 h", "mean meetings", "theory", "handed over")
    table(f"{meetings['nodes']} nodes, a pair meets every {meetings['mean_meeting_hours']:g} h", columns, rows)


def _figure(value: float | None, *, share: bool = False) -> str:
    if value is None:
        return ">"
    return f"{value:.1%}" if share else f"{value:.3g}"
