"""`causeway device`: tokens for new devices, and what is known of those that are there."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from causeway.cli.common import (
    DEFAULT_STATE,
    Json,
    State,
    console,
    counted,
    errors,
    explained,
    print_json,
    run,
    table,
)
from causeway.cli.options import Fleet, number, platform_fleet
from causeway.sdk import Orchestrator
from schemas.courier import Loss
from schemas.ids import check_identifier
from schemas.registry import OutboxState
from services.kit.api.registry import DeviceView, LossTotals
from services.kit.errors import RefusedError, SettingsError

app = typer.Typer(no_args_is_help=True, help="Enrol, list, show, release and revoke devices.")

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))

Name = Annotated[str, typer.Argument(help="Name of the device: letters, digits, '-' and '_'.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command()
def enrol(
    device: Name,
    fleet: Fleet = None,
    out: Annotated[Path | None, typer.Option("--out", help="Token file (default: DEVICE.token).")] = None,
    hours: Annotated[float, number("--hours", text="How long the token may be used.", low=0.01, high=720)] = 24.0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing token file.")] = False,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Write an enrolment token, to be carried to the device.

    Example: causeway device enrol cam-1 --fleet harbour
    """
    path = out or Path(f"{device}.token")
    with explained():
        check_identifier(device, "device")
        if not path.absolute().parent.is_dir():
            raise SettingsError(f"write token {path}: there is no folder {path.parent}; make it, or choose another")
        if path.exists() and not force:
            raise RefusedError(f"write token {path}: it exists; choose another with --out or replace it with --force")
    name = fleet or platform_fleet(state)
    token = run(state, lambda platform: platform.token(name, device, hours * 3_600))
    with explained():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(token.write())
    if as_json:
        print_json({"token_file": str(path), "fleet": name, "device": device, "expires": token.expires.isoformat()})
        return
    console.print(f"wrote [bold]{path}[/]: a secret, valid once and until {token.expires:%Y-%m-%d %H:%M} UTC")
    console.print(f"next, on the device: [bold]causeway-edge enrol {path}[/] and then [bold]causeway-edge run[/]")


@app.command("list")
def list_devices(fleet: Fleet = None, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List devices with their standing and last heartbeat.

    Example: causeway device list --fleet harbour
    """
    devices = run(state, lambda platform: platform.devices(fleet))
    if as_json:
        print_json(devices)
        return
    columns = ("fleet", "device", "status", "last seen", "battery", "temp", "load", "models", "waiting")
    now = time.time()
    table(counted(len(devices), "device"), columns, [_row(device, now) for device in devices])
    for held in (device for device in devices if device.quarantine is not None):
        name = f"{held.device} --fleet {held.fleet}"
        errors.print(
            f"{held.fleet}/{held.device} is in quarantine: {held.quarantine and held.quarantine.message}. Its letters "
            f"wait in the outboxes. Once one of the two is gone: causeway device release {name}, "
            f"else: causeway device revoke {name}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


@app.command()
def show(device: Name, fleet: Fleet = None, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Show everything known of one device.

    Example: causeway device show cam-1
    """
    name = fleet or platform_fleet(state)
    view = run(state, lambda platform: platform.device(name, device))
    if as_json:
        print_json(view)
        return
    rows: list[tuple[str, object]] = [
        ("fleet", view.fleet),
        ("device", view.device),
        ("standing", view.standing),
        *([("in quarantine since", _moment(view.quarantine.at))] if view.quarantine else []),
        *([("why", view.quarantine.message)] if view.quarantine else []),
        ("trust level", view.trust_level),
        ("online", view.online),
        ("last seen", _moment(view.last_seen)),
        ("enrolled", view.enrolled_at),
        ("credentials until", _moment(view.jwt_expires)),
    ]
    rows += [(f"capability: {key}", value) for key, value in view.capabilities.model_dump(exclude_none=True).items()]
    if view.heartbeat is not None:
        rows += [(f"heartbeat: {key}", value) for key, value in view.heartbeat.model_dump(exclude_none=True).items()]
    rows += given_up(view.losses)
    table(f"{view.fleet}/{view.device}", ("what", "value"), rows)


@app.command()
def revoke(
    device: Name, fleet: Fleet = None, yes: Yes = False, state: State = DEFAULT_STATE, as_json: Json = False
) -> None:
    """Cut one device off, now; the others do not notice.

    Example: causeway device revoke cam-1 --yes
    """
    decision = _Decision("Revoke {}? It must enrol anew to come back.", Orchestrator.revoke, "revoked", "revoked")
    _decide(decision, device, fleet, yes=yes, state=state, as_json=as_json)


@app.command()
def release(
    device: Name, fleet: Fleet = None, yes: Yes = False, state: State = DEFAULT_STATE, as_json: Json = False
) -> None:
    """End a quarantine: take the device's letters again, once the other one that used its key is gone.

    Example: causeway device release cam-1 --yes
    """
    question = "Is only one device left that uses the key of {}?"
    decision = _Decision(question, Orchestrator.let_go, "released", "enrolled")
    _decide(decision, device, fleet, yes=yes, state=state, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Decision:
    """What an operator decides of one device: the question, how it is done, what is said then, its new standing."""

    question: str
    verb: Callable[[Orchestrator, str, str], Awaitable[object]]
    done: str
    standing: str


def _decide(decision: _Decision, device: str, fleet: str | None, *, yes: bool, state: Path, as_json: bool) -> None:
    name = fleet or platform_fleet(state)
    if not yes:
        typer.confirm(decision.question.format(f"{name}/{device}"), abort=True, err=True)
    run(state, lambda platform: decision.verb(platform, name, device))
    if as_json:
        print_json({"fleet": name, "device": device, "standing": decision.standing})
    else:
        errors.print(f"{decision.done} {name}/{device}")


def _row(view: DeviceView, now: float) -> tuple[object, ...]:
    beat = view.heartbeat
    status = view.standing if view.standing != "enrolled" else "online" if view.online else "offline"
    known = (view.fleet, view.device, status, _ago(view.last_seen, now))
    if beat is None:
        return (*known, None, None, None, None, None)
    return (
        *known,
        None if beat.battery_percent is None else f"{beat.battery_percent:.0f} %",
        None if beat.temp_c is None else f"{beat.temp_c:.0f} C",
        None if beat.load is None else f"{beat.load:.2f}",
        "\n".join(f"{model.name}@{model.digest[:8]}" for model in beat.models) or None,
        None if beat.outbox is None else _waiting(beat.outbox),
    )


def _waiting(outbox: OutboxState) -> str:
    notes = [f"{outbox.dropped} dropped"] if outbox.dropped else []
    if outbox.storage == "memory":
        notes.append("in memory")
    return f"{outbox.letters} ({', '.join(notes)})" if notes else str(outbox.letters)


def given_up(losses: LossTotals | None) -> list[tuple[str, object]]:
    """Rows of a device's losses; numbers that were only passed over are none."""
    if losses is None or not any(losses.letters.values()):
        return []
    return [
        *((f"letters given up: {reason}", count) for reason, count in losses.letters.items() if count),
        ("of them maybe arrived", losses.maybe_arrived),
        *(("given up last", _loss(loss)) for loss in losses.newest if loss.letters),
    ]


def _loss(loss: Loss) -> str:
    numbers = f"{loss.first}" if loss.first == loss.last else f"{loss.first} to {loss.last}"
    names = ", ".join(f"{name.kind} {name.id}" for name in loss.names)
    maybe = ", maybe arrived" if loss.maybe_arrived else ""
    return f"{loss.lane} {numbers} of epoch {loss.epoch}, {loss.reason}{maybe}" + (f": {names}" if names else "")


def _ago(seconds: float | None, now: float) -> str | None:
    if seconds is None:
        return None
    age = max(0.0, now - seconds)
    length, unit = next(((length, unit) for length, unit in _UNITS if age >= length), (1, "s"))
    return f"{age // length:.0f} {unit} ago"


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
