"""`causeway rollout`: a release onto devices, wave by wave."""

from __future__ import annotations

from math import isfinite
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from causeway.cli.common import (
    DEFAULT_STATE,
    EXIT_FAILED,
    Json,
    State,
    console,
    counted,
    explained,
    print_json,
    run,
    table,
)
from causeway.cli.options import DAY_S, Devices, Fleet, number, platform_fleet
from causeway.sdk import Orchestrator
from services.kit.api.ota import CreateRequest, RolloutView
from services.kit.errors import SettingsError

app = typer.Typer(no_args_is_help=True, help="Roll releases out, watch and abort.")

Id = Annotated[str, typer.Argument(help="Id of the rollout, as `create` and `list` print it.")]


@app.command()
def create(
    model: Annotated[str, typer.Argument(help="Model to roll out.")],
    version: Annotated[str, typer.Argument(help="A published version of it.")],
    fleet: Fleet = None,
    device: Devices = None,
    waves: Annotated[
        str, typer.Option("--waves", help="Cumulative shares (or counts from 2 on); ends with 1.0.")
    ] = "0.1,1.0",
    canary: Annotated[str | None, typer.Option("--canary", help="A device that must be in the first wave.")] = None,
    deadline: Annotated[
        float, number("--deadline", text="Seconds per wave; silence by then is failure.", low=0.01, high=30 * DAY_S)
    ] = 3_600.0,
    max_failed: Annotated[float, number("--max-failed", text="Share of a wave that may fail.", high=1)] = 0.0,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Begin a rollout.

    Example: causeway rollout create digits 0.2.0 --waves 0.125,1.0 --canary cam-1 --watch
    """
    with explained():
        request = CreateRequest(
            model=model,
            version=version,
            fleet=fleet or platform_fleet(state),
            devices=device or None,
            waves=_waves(waves),
            canary=canary,
            deadline_s=deadline,
            max_failed_ratio=max_failed,
        )
    view = run(state, lambda platform: platform.create_rollout(request))
    if watch_it:
        watch(view.rollout, state=state, as_json=as_json)
    elif as_json:
        print_json(view)
    else:
        console.print(
            f"rollout [bold]{view.rollout}[/]: {counted(len(view.devices), 'device')} in {counted(view.waves, 'wave')}"
        )
        console.print(f"next: [bold]causeway rollout watch {view.rollout}[/]")


@app.command()
def watch(rollout: Id, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Follow a rollout to its end; exit 1 unless it is done.

    Example: causeway rollout watch 01J...
    """

    async def follow(platform: Orchestrator) -> RolloutView:
        with Live(console=console, auto_refresh=False, transient=as_json) as live:
            async for view in platform.watch_rollout(rollout):
                if not as_json:
                    live.update(_summary(view), refresh=True)
        return view

    view = run(state, follow, f"the rollout goes on; see `causeway rollout watch {rollout}`")
    if as_json:
        print_json(view)
    elif not console.is_terminal:
        console.print()  # `Live` ends the last line on terminals only
    if view.state != "done":
        raise typer.Exit(EXIT_FAILED)


@app.command()
def abort(rollout: Id, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Assign no further device; what is installed stays.

    Example: causeway rollout abort 01J...
    """
    view = run(state, lambda platform: platform.abort_rollout(rollout))
    if as_json:
        print_json(view)
    else:
        console.print(_summary(view))


@app.command("list")
def list_rollouts(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List rollouts, newest first.

    Example: causeway rollout list
    """
    rollouts = run(state, lambda platform: platform.rollouts())
    if as_json:
        print_json(rollouts)
        return
    columns = ("rollout", "model", "version", "fleet", "state", "wave", "devices")
    rows = [(v.rollout, v.model, v.version, v.fleet, v.state, f"{v.wave + 1}/{v.waves}", _counts(v)) for v in rollouts]
    table(counted(len(rollouts), "rollout"), columns, rows)
    for view in rollouts:
        if view.reason:
            console.print(f"{view.rollout}: {view.reason}", markup=False, highlight=False)


def _waves(text: str) -> list[float]:
    try:
        shares = [float(wave) for wave in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(map(isfinite, shares)):
        raise SettingsError(f"create a rollout: --waves {text!r} is not a list of numbers, as 0.1,1.0")
    return shares


def _counts(view: RolloutView) -> str:
    return ", ".join(f"{n} {state}" for state, n in sorted(view.counts.items()))


def _summary(view: RolloutView) -> Table:
    shown = Table(
        title=f"{view.model} {view.version}: {view.state}, wave {view.wave + 1} of {view.waves}", title_justify="left"
    )
    for column in ("device", "wave", "state", "step", "reason"):
        shown.add_column(column)
    for device in view.devices[:40]:
        shown.add_row(
            device.device,
            str(device.wave + 1),
            device.state,
            device.step or "-",
            device.message or device.reason or "-",
        )
    if len(view.devices) > 40:
        shown.caption = f"and {len(view.devices) - 40} more: {_counts(view)}"
    return shown
