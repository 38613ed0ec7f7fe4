"""`causeway task`: work for idle devices, who got it and why."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Annotated, cast

import typer
from pydantic import TypeAdapter, ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

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
    short,
    table,
)
from causeway.cli.options import DAY_S, Devices, Fleet, number, platform_fleet, whole
from causeway.sdk import WATCH_INTERVAL_S, Orchestrator
from schemas.errors import MessageError
from schemas.scheduler import Limits, TaskKind, Values
from services.kit.api.scheduler import AppliedResult, Requires, SubmitRequest, TaskView

app = typer.Typer(no_args_is_help=True, help="Place tasks on idle devices, and see why they went where they went.")

_SHOWN_REASONS = 12
_OVER = ("done", "failed")


@app.command()
def submit(
    runner: Annotated[str, typer.Argument(help="Entry point installed on the devices, as profile@1 or evaluate@1.")],
    count: Annotated[int, whole("--count", "-n", text="How many equal tasks.", high=10_000)] = 1,
    values: Annotated[
        list[str] | None, typer.Option("--input", "-i", help="name=value, the value as JSON or a word; repeat it.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="inference, training, evaluation, data, diagnose, user.")
    ] = "user",
    fleet: Fleet = None,
    device: Devices = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only devices that have this dataset.")] = None,
    per_device: Annotated[int | None, whole("--per-device", text="At most so many at a time.")] = None,
    battery: Annotated[float, number("--battery", text="Least battery in percent, unless charging.", high=100)] = 30.0,
    max_temp: Annotated[float, number("--max-temp", text="Hottest device in degrees C.", low=-50, high=150)] = 55.0,
    ram: Annotated[int, whole("--ram", text="MB of memory that a task may use.", high=2**20)] = 256,
    cpu_s: Annotated[
        float, number("--cpu", text="Seconds of CPU time that a task may use.", low=0.01, high=DAY_S)
    ] = 60.0,
    deadline: Annotated[float, number("--deadline", text="Seconds for one attempt.", low=0.01, high=DAY_S)] = 600.0,
    terms: Annotated[int, whole("--terms", text="Attempts before a task has failed.", high=100)] = 3,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the results; exit 1 unless all are done.")] = False,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Submit tasks and show which device got each, and why.

    Example: causeway task submit evaluate@1 -i model=digits -i dataset=test --kind evaluation --wait
    """
    with explained():
        request = SubmitRequest(
            kind=cast("TaskKind", kind),
            runner=runner,
            inputs=_inputs(values or []),
            limits=Limits(cpu_s=cpu_s, ram_mb=ram, wall_s=deadline),
            requires=Requires(
                min_battery_percent=battery, max_temp_c=max_temp, devices=device or None, dataset=dataset
            ),
            fleet=fleet or platform_fleet(state),
            count=count,
            max_per_device=per_device,
            deadline_s=deadline,
            max_terms=terms,
        )

    async def work(platform: Orchestrator) -> list[TaskView]:
        views = await platform.submit(request)
        if not as_json:
            _placement(views, count)
        return await _wait(platform, views, quiet=as_json) if wait else views

    views = run(state, work, "the tasks go on; see `causeway task list`" if wait else "")
    if as_json:
        print_json(views)
    elif wait:
        _tasks(views)
    else:
        console.print("next: [bold]causeway task list[/]")
    if wait and any(view.state != "done" for view in views):
        raise typer.Exit(EXIT_FAILED)


@app.command("list")
def list_tasks(
    fleet: Annotated[str | None, typer.Option("--fleet", help="Only this fleet.")] = None,
    limit: Annotated[int, whole("--limit", text="The newest so many.", high=10_000)] = 50,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """List the newest tasks with their results.

    Example: causeway task list --fleet harbour --limit 20
    """
    views = run(state, lambda platform: platform.tasks(fleet, limit))
    if as_json:
        print_json(views)
        return
    _tasks(views)


@app.command()
def show(
    task: Annotated[str, typer.Argument(help="Id of the task, as `submit` and `list` print it.")],
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Show one task: where it is, why there, and what came of it.

    Example: causeway task show 01J...
    """
    view = run(state, lambda platform: platform.task(task))
    if as_json:
        print_json(view)
        return
    _tasks([view])
    _reasons(view)
    for result in view.results:
        console.print(f"term {result.term} on {result.device}: {result.outcome} {_told(result)}", markup=False)


async def _wait(platform: Orchestrator, views: list[TaskView], *, quiet: bool) -> list[TaskView]:
    current = {view.task: view for view in views}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=quiet, transient=True) as progress:
        bar = progress.add_task("tasks over", total=len(current))
        while open_tasks := [task for task, view in current.items() if view.state not in _OVER]:
            progress.update(bar, completed=len(current) - len(open_tasks))
            await asyncio.sleep(WATCH_INTERVAL_S)
            for task in open_tasks:
                current[task] = await platform.task(task)
    return list(current.values())


def _placement(views: list[TaskView], count: int) -> None:
    placed = Counter(view.device if view.state == "leased" else None for view in views)
    spread = ", ".join(f"{device} {number}" for device, number in sorted(placed.items(), key=str) if device)
    waiting = f"; {placed[None]} waiting" if placed[None] else ""
    console.print(f"{counted(count, 'task')}: {spread or 'no device can take one now'}{waiting}")
    if views:
        _reasons(views[0])


def _reasons(view: TaskView) -> None:
    rows = [
        (
            f"{reason.device} *" if reason.device == view.device else reason.device,
            None if reason.score is None else f"{reason.score:.3f}",
            reason.why,
        )
        for reason in view.reasons[:_SHOWN_REASONS]
    ]
    table(f"placement of {view.task}" + (f" ({view.reason})" if view.reason else ""), ("device", "score", "why"), rows)


def _tasks(views: list[TaskView]) -> None:
    rows, several = [], len({view.fleet for view in views}) > 1
    for view in views:
        told = [view.reason] if view.reason else []
        told += [_told(view.results[-1])] if view.results and view.state in _OVER else []
        where = view.device and (f"{view.fleet}/{view.device}" if several else view.device)
        rows.append((view.task, view.runner, view.state, where, ": ".join(told) or None))
    table(counted(len(views), "task"), ("task", "runner", "state", "device", "result"), rows)


def _told(result: AppliedResult) -> str:
    return result.message or short(result.output)


def _inputs(values: list[str]) -> Values:
    inputs: dict[str, object] = {}
    for text in values:
        name, sign, value = text.partition("=")
        if not sign:
            raise MessageError(f"read input {text!r}: write name=value, as model=digits")
        try:
            inputs[name] = json.loads(value)
        except ValueError:
            inputs[name] = value
    try:
        return TypeAdapter(Values).validate_python(inputs)
    except ValidationError as error:
        wrong = error.errors()[0]["loc"][0]
        raise MessageError(
            f"read input {wrong}: it is not a text, a number, true or false, or not of a length that a task may carry"
        ) from None
