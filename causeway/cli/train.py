"""`causeway train`: federated jobs, from the first invitation to the last round."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from causeway.cli.common import (
    DEFAULT_STATE,
    EXIT_FAILED,
    EXIT_USAGE,
    Json,
    State,
    console,
    counted,
    errors,
    fail,
    print_json,
    run,
    table,
)
from causeway.cli.options import DAY_S, Devices, Fleet, number, whole
from causeway.learning.export import weights_of, write_release_files
from causeway.sdk import WATCH_INTERVAL_S, Orchestrator
from edge_runtime.errors import EdgeError
from edge_runtime.learning.trainer import load_dataset
from services.kit.api.aggregator import JobRequest, JobView
from services.kit.artifacts import open_store
from services.kit.errors import RefusedError

app = typer.Typer(no_args_is_help=True, help="Train across devices without moving their data.")

Job = Annotated[str, typer.Argument(help="Name of the job: letters, digits, '-' and '_'.")]


@app.command()
def start(
    job: Job,
    dataset: Annotated[str, typer.Option("--dataset", help="Local data set of the devices to train on.")],
    fleet: Fleet = None,
    estimator: Annotated[str, typer.Option("--estimator", help="Installed on the devices.")] = "classifier@1",
    rounds: Annotated[int, whole("--rounds", text="How many.", high=10_000)] = 10,
    device: Devices = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE for the estimator, as lr=0.05.")
    ] = None,
    min_updates: Annotated[int, whole("--min-updates", text="A round with fewer is tried again.")] = 1,
    deadline: Annotated[
        float,
        number("--deadline", text="Seconds that a round waits for the last device.", low=0.01, high=DAY_S),
    ] = 120.0,
    attempts: Annotated[
        int, whole("--max-attempts", text="In vain for one round until the job fails.", high=1_000)
    ] = 5,
    seed: Annotated[int, whole("--seed", text="Of the initial weights.", low=0)] = 0,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Create a job and open its first round.

    Example: causeway train start digits-1 --dataset digits --rounds 8 --watch
    """

    async def begin(platform: Orchestrator) -> JobView:
        request = JobRequest(
            job=job,
            fleet=fleet or platform.settings.fleet,
            dataset=dataset,
            estimator=estimator,
            parameters=parameters,
            rounds=rounds,
            devices=device,
            min_updates=min_updates,
            round_deadline_s=deadline,
            max_attempts=attempts,
            seed=seed,
        )
        await platform.create_job(request)
        try:
            return await platform.start_job(job)
        except RefusedError as error:
            raise RefusedError(f"{error}; the job is made, begin it with `causeway train resume {job}`") from error

    parameters = dict(map(_parameter, parameter or []))
    view = run(state, begin)
    if watch_it:
        watch(job, state, as_json=as_json)
        return
    if as_json:
        print_json(view)
    else:
        console.print(f"job [bold]{job}[/] runs; follow it with [bold]causeway train watch {job}[/]")


@app.command()
def watch(job: Job, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Follow a job until no further round opens; with --json, a line of JSON per change. Exit code 1 if it failed.

    Example: causeway train watch digits-1
    """
    view = run(
        state,
        lambda platform: _follow_json(platform, job) if as_json else _follow(platform, job),
        f"the job goes on; see `causeway train watch {job}`",
    )
    if not as_json:
        show(job, state)
    if view.state == "failed":
        if not as_json:
            errors.print(f"job {job} failed: {view.reason}", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_FAILED)


@app.command("list")
def list_jobs(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List jobs.

    Example: causeway train list --json
    """
    jobs = run(state, lambda platform: platform.jobs())
    if as_json:
        print_json(jobs)
        return
    columns = ("job", "fleet", "state", "rounds", "present round", "accuracy", "loss", "reason")
    table(counted(len(jobs), "job"), columns, [_row(view) for view in jobs])


@app.command()
def show(job: Job, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Show a job, round by round. Accuracy and loss are the devices' own, on their training data.

    Example: causeway train show digits-1
    """
    view = run(state, lambda platform: platform.job(job))
    if as_json:
        print_json(view)
        return
    rows = [
        (
            past.round,
            past.attempt,
            f"{past.updates} of {past.invited}",
            past.samples,
            _number(past.accuracy),
            _number(past.loss),
            f"{past.took_s:.2f}",
            past.weights.sha256[:12],
        )
        for past in view.history
    ]
    columns = ("round", "attempt", "updates", "samples", "accuracy", "loss", "seconds", "weights")
    table(f"{view.job}: {view.state}", columns, rows)


@app.command()
def export(
    job: Job,
    out: Annotated[Path, typer.Option("--out", help="Folder for model.onnx and smoke.safetensors.")],
    samples: Annotated[Path, typer.Option("--samples", help="`.npz` with `x`: inputs of the smoke test.")],
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Write a job's newest weights as ONNX, and the smoke test for a release of it.

    Example: causeway train export digits-1 --out digits --samples shards/holdout.npz
    """

    async def work(platform: Orchestrator) -> tuple[Path, Path]:
        view = await platform.job(job)
        if view.weights is None:
            raise RefusedError(f"export job {job}: no round is closed yet; see `causeway train watch {job}`")
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            await open_store(platform.state, platform.settings).fetch(view.weights.sha256, weights)
            try:
                return write_release_files(weights_of(weights), load_dataset(samples)[0], out)
            except (ValueError, OSError, EdgeError) as error:
                raise RefusedError(f"export job {job}: {error}") from error

    model, smoke = run(state, work)
    if as_json:
        print_json({"model": str(model), "smoke": str(smoke)})
        return
    console.print(f"wrote [bold]{model}[/] and its smoke test {smoke}", soft_wrap=True)
    console.print(
        f"next: causeway release stage {model} --smoke {smoke} --model NAME --version VERSION", soft_wrap=True
    )


@app.command()
def stop(job: Job, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Open no further round; `causeway train resume` goes on.

    Example: causeway train stop digits-1
    """
    view = run(state, lambda platform: platform.stop_job(job))
    print_json(view) if as_json else console.print(f"job [bold]{job}[/] is {view.state}")


@app.command()
def resume(job: Job, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Go on with a job that was stopped or has failed, at the round where it was.

    Example: causeway train resume digits-1
    """
    view = run(state, lambda platform: platform.start_job(job))
    print_json(view) if as_json else console.print(f"job [bold]{job}[/] is {view.state}")


async def changes(platform: Orchestrator, job: str) -> AsyncIterator[JobView]:
    """The job as it changes, until it no longer runs."""
    last: JobView | None = None
    while last is None or last.state == "running":
        view = await platform.job(job)
        if view != last:
            yield view
        last = view
        if view.state == "running":
            await asyncio.sleep(WATCH_INTERVAL_S)


async def _follow(platform: Orchestrator, job: str) -> JobView:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    view = await platform.job(job)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(job, total=None, note="")
        async for view in changes(platform, job):
            progress.update(bar, total=view.rounds, completed=_closed(view), note=_note(view))
    return view


async def _follow_json(platform: Orchestrator, job: str) -> JobView:
    view: JobView | None = None
    async for view in changes(platform, job):
        typer.echo(view.model_dump_json())
    assert view is not None
    return view


def _closed(view: JobView) -> int:
    return view.history[-1].round if view.history else 0


def _note(view: JobView) -> str:
    note = str(view.state)
    if view.state == "running":
        note = f"round {view.round}: {len(view.received)} of {len(view.invited)} updates"
    if view.history and view.history[-1].accuracy is not None:
        note += f", accuracy {view.history[-1].accuracy:.3f}"
    return note


def _row(view: JobView) -> tuple[object, ...]:
    last = view.history[-1] if view.history else None
    present = f"{view.round}: {len(view.received)} of {len(view.invited)}" if view.state == "running" else None
    accuracy, loss = (_number(last.accuracy), _number(last.loss)) if last else (None, None)
    return view.job, view.fleet, view.state, f"{_closed(view)} of {view.rounds}", present, accuracy, loss, view.reason


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        fail(f"--parameter {text!r} is not NAME=VALUE, as lr=0.05", EXIT_USAGE)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
