"""`causeway letters`: what was refused, why, and once more; and letters that the platform lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args

import typer

from causeway.cli.common import (
    DEFAULT_STATE,
    EXIT_NOT_FOUND,
    EXIT_REFUSED,
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
from causeway.cli.options import address, whole, whole_argument
from causeway.platform.readers import READER_DAYS, add_reader
from causeway.rejects import Rejected, RejectedLetter, Wanted, parse_since
from causeway.sdk import Orchestrator
from schemas.events import Lane
from services.kit.api.courier import Replayed
from services.kit.api.registry import RecallRequest
from services.kit.errors import SettingsError
from services.kit.folder import StateFolder
from services.kit.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="See what was refused, replay it, and recall what was lost.")

Number = Annotated[int, whole_argument("Number of the rejected message, as `rejected` lists it.")]
OfDevice = Annotated[str | None, typer.Option("--device", help="Of this device: fleet/device, or device.")]
ForReason = Annotated[str | None, typer.Option("--reason", help="Refused for this reason, as `unknown_device`.")]
Since = Annotated[str | None, typer.Option("--since", help="Since: 90s, 10min, 2h, 3d ago, or a moment in ISO 8601.")]
Limit = Annotated[int, whole("--limit", text="At most so many, the newest.", high=10_000)]


@app.command()
def rejected(
    device: OfDevice = None,
    reason: ForReason = None,
    since: Since = None,
    limit: Limit = 100,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """List messages that services refused in the last days, with the reason.

    Example: causeway letters rejected --device harbour/cam-1 --since 2h
    """
    wanted = _wanted(state, device, reason, since)
    found = run(state, lambda platform: platform.rejected(wanted, limit))
    if as_json:
        print_json(found)
        return
    columns = ("id", "time", "device", "kind", "by", "reason", "why")
    rows = [
        (each.id, f"{each.time:%Y-%m-%dT%H:%M:%SZ}", _device(each), each.kind, each.service, each.reason, each.message)
        for each in found
    ]
    table(f"{counted(len(found), 'rejected message')}", columns, rows)


@app.command()
def show(number: Number, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Show one rejected message: where it came from, why it was refused, and what it says.

    Example: causeway letters show 17
    """
    found = run(state, lambda platform: platform.rejected_letter(number))
    if as_json:
        print_json(found)
        return
    _show(found)


@app.command()
def replay(
    numbers: Annotated[list[int] | None, whole_argument("Numbers, as `rejected` lists them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every letter that the other options let through.")] = False,
    device: OfDevice = None,
    reason: ForReason = None,
    since: Since = None,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Have rejected letters taken once more, after what was wrong is mended. What is stored already stays once.

    Example: causeway letters replay --all --reason unknown_device --since 1h
    """
    with explained():
        if bool(numbers) == everything or (numbers and (device or reason or since)):
            raise SettingsError("replay letters: name their numbers, or all with --all and what they have in common")
    wanted = _wanted(state, device, reason, since)

    async def work(platform: Orchestrator) -> list[Replayed]:
        chosen = numbers or [each.id for each in await platform.rejected(wanted, 10_000) if each.channel == "letter"]
        return await platform.replay(chosen)

    answers = run(state, work)
    if as_json:
        print_json(answers)
    else:
        _report(answers)
    undone = [answer for answer in answers if answer.outcome in {"refused", "early"}]
    if undone:
        raise typer.Exit(EXIT_NOT_FOUND if all(one.reason == "not_found" for one in undone) else EXIT_REFUSED)


@app.command()
def recall(
    device: Annotated[str, typer.Argument(help="fleet/device, or device of the platform's fleet.")],
    lane: Annotated[str | None, typer.Option("--lane", help="Only this lane: control, normal or bulk.")] = None,
    first: Annotated[int | None, whole("--from", text="From this sequence of the lane on.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every lane, from the first letter on.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also letters that the platform holds.")] = False,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Have a device send again what it keeps (24 h at most) and the platform does not hold any more.

    A lane's mark is the last letter that the platform counts as stored; `held up to` is the last one from `--from` on
    that it really holds. A mark above that is lowered to it, and with `--force` to just before `--from`.

    Example: causeway letters recall harbour/cam-1 --lane normal --from 1200
    """
    with explained():
        if everything == (lane is not None):
            raise SettingsError("recall letters: name one lane with --lane and --from, or all with --all")
        if lane is not None and lane not in get_args(Lane):
            raise SettingsError(f"recall letters: there is no lane {lane!r}: known are {', '.join(get_args(Lane))}")
        whose = address(device, state)
        request = RecallRequest.model_validate(
            {"fleet": whose.fleet, "device": whose.device, "lane": lane, "first": first or 1, "force": force}
        )
    view = run(state, lambda platform: platform.recall(request))
    if as_json:
        print_json(view)
        return
    columns = ("lane", "mark was", "mark is", "held up to")
    table(
        f"{whose}, epoch {view.epoch}",
        columns,
        [(each.lane, each.mark, each.lowered_to, each.held_to or None) for each in view.lanes],
    )
    if all(each.lowered_to == each.mark for each in view.lanes):
        console.print("the platform holds every letter up to the marks, so none was lowered")
    console.print(
        f"posted {counted(len(view.letters), 'recall letter')}: the device sends what it still keeps above them"
    )


@app.command()
def reader(
    name: Annotated[str, typer.Argument(help="Name of the program: letters, digits, - and _.")],
    kind: Annotated[list[str], typer.Option("--kind", help="Kind of letters that it reads, as `sample`; repeat it.")],
    days: Annotated[
        int, whole("--days", text="How long they are good; run this again before.", high=3_650)
    ] = READER_DAYS,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Make bus credentials for a program of your own that reads letters of devices, and nothing else.

    Example: causeway letters reader dashboard --kind sample
    """
    with explained():
        folder = StateFolder(state.absolute()).require()
        url = load_settings(folder).bus.nats_url
        made = add_reader(folder, name, kind, days)
    if as_json:
        print_json({"url": url, **asdict(made)})
        return
    console.print(
        f"wrote {made.credentials}, a secret, good until {made.expires}", soft_wrap=True, highlight=False, markup=False
    )
    columns = ("kind", "stream", "subject", "durable consumer")
    table(
        f"for a connection to {url} with inbox prefix {made.inbox_prefix}",
        columns,
        [(each.kind, each.stream, each.subject, each.consumer) for each in made.sources],
    )


def _wanted(state: Path, device: str | None, reason: str | None, since: str | None) -> Wanted:
    with explained():
        try:
            moment = parse_since(since, datetime.now(UTC)) if since else None
        except ValueError as error:
            raise SettingsError(f"list what was refused since {since!r}: write 90s, 10min, 2h, 3d or a date") from error
        return Wanted(device=address(device, state) if device else None, reason=reason, since=moment)


def _device(rejected_: Rejected) -> str | None:
    return f"{rejected_.fleet}/{rejected_.device}" if rejected_.device else None


def _show(found: RejectedLetter) -> None:
    rows: list[tuple[str, object]] = [
        ("id", found.id),
        ("time", f"{found.time:%Y-%m-%dT%H:%M:%SZ}"),
        ("refused by", found.service),
        ("reason", found.reason),
        ("why", found.message),
        ("came on", found.subject),
        ("bytes", found.bytes),
        ("signed by key", ", ".join(key[:12] for key in found.signed_by) or None),
    ]
    table(f"rejected message {found.id}", ("what", "value"), rows)
    if found.body is not None:
        console.print_json(data=found.body, ensure_ascii=True)
    else:
        console.print(_printable(found.raw), markup=False, highlight=False, soft_wrap=True)


def _printable(raw: str) -> str:
    """Anybody may have sent it: the terminal must not obey escape sequences in it."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in raw)


def _report(answers: Sequence[Replayed]) -> None:
    for answer in answers:
        if answer.outcome in {"refused", "early"}:
            why = answer.message or "a letter before it is missing; its device sends it"
            errors.print(f"{answer.sequence}: {answer.outcome}: {why}", soft_wrap=True, highlight=False, markup=False)
    tally = Counter(answer.outcome for answer in answers)
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.items())) or "none"
    console.print(f"replayed {counted(len(answers), 'letter')}: {said}")
