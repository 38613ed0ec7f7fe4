"""`causeway bundle`: letters and models by folder, for devices without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

from causeway.bundle.bring import ImportReport, bring
from causeway.bundle.fetch import ExportReport, fetch
from causeway.bundle.folder import BundleFolder
from causeway.bundle.pieces import Copier
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
from causeway.cli.options import address
from causeway.sdk import Orchestrator
from schemas.ids import Address
from services.kit.artifacts import open_store
from services.kit.errors import NotFoundError, SettingsError

app = typer.Typer(no_args_is_help=True, help="Carry letters and models to and from devices in a folder.")

Folder = Annotated[Path, typer.Argument(help="Folder that travels, as a mounted USB stick.")]


@app.command("import")
def import_bundles(folder: Folder, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Take the bundles of devices out of a folder; each goes from there once its letters are stored.

    Example: causeway bundle import /media/stick
    """
    with explained():
        if not folder.is_dir():
            raise SettingsError(f"import bundles from {folder}: there is no such folder; is the stick mounted?")
        if not BundleFolder(folder).base.exists():
            raise NotFoundError(f"import bundles from {folder}: nothing of Causeway is there; was it ever exported to?")
    with _bar("importing", MofNCompleteColumn(), quiet=as_json) as progress:

        async def work(platform: Orchestrator) -> ImportReport:
            return await bring(platform, BundleFolder(folder), progress)

        report = run(state, work, "what was not stored lies in the folder as before; run it again")
    if as_json:
        print_json(report)
    else:
        _show_import(report, folder)
    if report.refused:
        raise typer.Exit(EXIT_REFUSED)


@app.command("export")
def export_bundles(
    folder: Folder,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="For this device, as fleet/device or device; repeat it.")
    ] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="For every device that letters wait for, or that sent bundles lately.")
    ] = False,
    release: Annotated[
        list[str] | None,
        typer.Option("--release", help="Take this release along, as model or model@version; repeat it."),
    ] = None,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Write what waits for devices into a folder: receipts, letters, trust, and the models that they name.

    A device or release that cannot be had is told, and leaves the others be; the exit code then is 3 or 4.

    Example: causeway bundle export /media/stick --device harbour/cam-1
    """
    with explained():
        if bool(device) == everyone:
            raise SettingsError("export bundles: name devices with --device or all with --all, not both")
        if not folder.is_dir():
            raise SettingsError(f"export bundles to {folder}: there is no such folder; is the stick mounted?")
        named = [address(text, state) for text in device or ()]
        releases = [_release(text) for text in release or ()]
    with _bar("copying", DownloadColumn(), quiet=as_json) as progress:

        async def work(platform: Orchestrator) -> ExportReport:
            copier = Copier(open_store(platform.state, platform.settings), BundleFolder(folder), progress)
            waiting = [] if named else await platform.bundle_devices()
            devices = named or [Address(each.fleet, each.device) for each in waiting]
            return await fetch(platform, copier, BundleFolder(folder), devices, releases)

        report = run(state, work, "what was written is whole; run it again to go on")
    if as_json:
        print_json(report)
    else:
        _show_export(report, folder)
    for each in report.left_out:
        what = f"{each.fleet}/{each.device}" + (f", release {each.release}" if each.release else "")
        errors.print(f"left out: {what}: {each.message}", markup=False, highlight=False, soft_wrap=True)
    if report.left_out:
        missing = all(each.code == "not_found" for each in report.left_out)
        raise typer.Exit(EXIT_NOT_FOUND if missing else EXIT_REFUSED)


def _show_import(report: ImportReport, folder: Path) -> None:
    columns = ("device", "bundles", "stored", "known", "too early", "refused")
    rows = [
        (
            f"{origin.fleet}/{origin.device}" if origin.device else "unknown",
            ", ".join(f"{number} {state}" for state, number in sorted(origin.bundles.items())),
            *(origin.stored, origin.duplicate, origin.early, origin.refused),
        )
        for origin in report.origins
    ]
    table(f"bundles of {counted(len(rows), 'device')}", columns, rows)
    for reason in [reason for origin in report.origins for reason in origin.reasons]:
        errors.print(f"refused: {reason}", markup=False, highlight=False, soft_wrap=True)
    if report.left:
        errors.print(
            f"not looked at: {counted(report.left, 'file')}, since there are too many; import again, to look at others",
            soft_wrap=True,
        )
    if report.kept:
        errors.print(
            f"not taken out: {counted(report.kept, 'file')}, since that is not allowed there; what they hold is stored",
            soft_wrap=True,
        )
    if report.receipts:
        console.print(f"wrote receipts for {counted(report.receipts, 'device')}; carry the folder back to them")
    console.print(f"next: [bold]causeway bundle export {folder} --all[/] adds what waits for them", soft_wrap=True)


def _show_export(report: ExportReport, folder: Path) -> None:
    columns = ("device", "bundles", "letters", "receipt", "trust", "artifacts")
    rows = [
        (
            f"{each.fleet}/{each.device}",
            *(each.bundles, each.letters),
            *("yes" if each.receipts else "no", "yes" if each.trust else "no", len(each.artifacts)),
        )
        for each in report.devices
    ]
    table(f"bundles for {counted(len(rows), 'device')}", columns, rows)
    for artifact in report.artifacts:
        console.print(
            f"artifact {artifact.sha256[:12]}: {artifact.copied} of {counted(artifact.pieces, 'piece')} copied, "
            f"{artifact.bytes} bytes",
            highlight=False,
        )
    console.print(f"next, on each device: [bold]causeway-edge bundle import {folder}[/]", soft_wrap=True)


@contextmanager
def _bar(what: str, column: ProgressColumn, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    with Progress(
        TextColumn(what), BarColumn(), column, console=errors, transient=True, disable=quiet or not errors.is_terminal
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _release(text: str) -> tuple[str, str | None]:
    model, _, version = text.partition("@")
    return model, version or None
