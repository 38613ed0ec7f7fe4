"""`causeway release`: from a model file to a release that devices believe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from causeway.cli.common import DEFAULT_STATE, Json, State, console, counted, explained, print_json, run, table
from causeway.cli.options import number, whole
from causeway.release.files import ReleaseFile, read_release, write_release
from causeway.release.model import check_model
from causeway.release.publish import publish as publish_release
from causeway.release.sign import sign as sign_release
from causeway.release.stage import DEFAULT_TOLERANCE, Draft
from causeway.release.stage import stage as stage_release
from causeway.sdk import Orchestrator
from schemas.ota import Stage
from services.kit.api.depot import PublishAnswer
from services.kit.artifacts import open_store
from services.kit.errors import SettingsError
from services.kit.folder import StateFolder
from services.kit.service import utc_now

app = typer.Typer(no_args_is_help=True, help="Stage, sign, publish and list releases of models.")

File = Annotated[Path, typer.Argument(help="Release file, as `stage` wrote it.")]


@app.command()
def stage(
    path: Annotated[Path | None, typer.Argument(help="ONNX file; none to raise a floor or revoke only.")] = None,
    model: Annotated[str, typer.Option("--model", help="Name of the model.")] = ...,  # type: ignore[assignment]
    version: Annotated[str | None, typer.Option("--version", help="New version of it.")] = None,
    smoke: Annotated[
        Path | None, typer.Option("--smoke", help="Smoke test: safetensors with `input` and `expected`, float32.")
    ] = None,
    tolerance: Annotated[
        float, number("--tolerance", text="Largest error in it.", low=1e-6, high=1_000)
    ] = DEFAULT_TOLERANCE,
    fleet: Annotated[list[str] | None, typer.Option("--fleet", help="Only for these fleets; repeat it.")] = None,
    for_stage: Annotated[str, typer.Option("--stage", help="development, test or production.")] = "production",
    requires: Annotated[
        list[str] | None, typer.Option("--requires", help="NAME=VALUE that a device must have, as ram_mb=512.")
    ] = None,
    raise_floor: Annotated[
        int | None, whole("--raise-floor", text="Never again install a release with a lower seq.")
    ] = None,
    revoke: Annotated[list[str] | None, typer.Option("--revoke", help="Never again install this version.")] = None,
    key: Annotated[
        list[Path] | None, typer.Option("--role-key", help="PEM files that sign a new model (default models.pem).")
    ] = None,
    threshold: Annotated[int, whole("--threshold", text="How many of them must.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Write a release file that says what is to be signed.

    Example: causeway release stage model.onnx --model digits --version 0.2.0 --smoke smoke.safetensors
    """
    with explained():
        draft = Draft(
            model=model,
            version=version,
            path=path,
            smoke=smoke,
            tolerance=tolerance,
            fleets=tuple(fleet or ()),
            stage=_stage(for_stage),
            requires=dict(_requirement(text) for text in requires or ()),
            raise_floor=raise_floor,
            revoke=tuple(revoke or ()),
            keys=tuple(key or ()),
            threshold=threshold,
        )
        release = stage_release(StateFolder(state.absolute()).require(), draft, utc_now())
        if path is not None:
            check_model(path)
        file = output or Path(f"{model}-{version or 'floor'}.release.json")
        write_release(file, release)
    if as_json:
        print_json({"file": str(file), **_summary(release)})
        return
    for line in release.diff:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote {file}; read the lines above, then")
    console.print(f"next: [bold]causeway release sign {file} --key KEY.pem[/] for {_signers(release)}", soft_wrap=True)


@app.command()
def sign(
    file: File,
    key: Annotated[list[Path], typer.Option("--key", help="PEM file of a private key; repeat it.")],
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="First line: password of encrypted keys.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add signatures to a release file; works without a platform.

    Example: causeway release sign digits-0.2.0.release.json --key alice.pem
    """
    with explained():
        release = read_release(file)
        password = _password(password_file)
        signed: list[str] = []
        for path in key:
            release, roles = sign_release(release, path, password)
            signed += roles
        write_release(file, release)
    if as_json:
        print_json({"signed": signed, **_summary(release)})
        return
    console.print(f"signed {', '.join(signed)}")
    for line in release.missing:
        console.print(f"still missing: {line}", markup=False)
    if not release.missing:
        console.print(f"complete; next: [bold]causeway release publish {file}[/]")


@app.command()
def publish(file: File, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Upload the model and send the finished metadata to the depot.

    Example: causeway release publish digits-0.2.0.release.json
    """
    with explained():
        release = read_release(file)

    async def work(platform: Orchestrator) -> PublishAnswer:
        with console.status(f"publishing {release.model} {release.version or ''}"):
            store = open_store(platform.state, platform.settings)
            return await publish_release(platform.bus, store, platform.settings.platform, release)

    answer = run(state, work)
    if as_json:
        print_json(answer)
        return
    for view in answer.releases:
        console.print(
            f"published {view.model} {view.version}, sha256 {view.artifact.sha256}", highlight=False, soft_wrap=True
        )
    if not answer.releases and release.version is not None:
        console.print(f"{release.model} {release.version} was published before; nothing has changed")
    console.print(f"trust: targets {answer.head.targets}, timestamp {answer.head.timestamp}")
    if release.version is not None:
        console.print(f"next: [bold]causeway rollout create {release.model} {release.version} --watch[/]")


@app.command("list")
def list_releases(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List published releases.

    Example: causeway release list --json
    """
    views = run(state, lambda platform: platform.releases())
    if as_json:
        print_json(views)
        return
    columns = ("model", "version", "seq", "bytes", "pieces", "stage", "smoke", "standing", "sha256")
    rows = [
        (
            view.model,
            view.version,
            view.custom.seq,
            view.artifact.length,
            view.artifact.pieces,
            view.custom.stage,
            "yes" if view.custom.smoke else "no",
            "revoked" if view.revoked else "below floor" if view.custom.seq < view.floor else "good",
            view.artifact.sha256[:12],
        )
        for view in views
    ]
    table(counted(len(views), "release"), columns, rows)


def _signers(release: ReleaseFile) -> str:
    return " and ".join(
        f"{staged.role} (key {', '.join(k[:12] for k in staged.keyids)})" for staged in release.roles.values()
    )


def _summary(release: ReleaseFile) -> dict[str, object]:
    return {"model": release.model, "version": release.version, "diff": release.diff, "missing": release.missing}


def _stage(text: str) -> Stage:
    known: dict[str, Stage] = {name: name for name in get_args(Stage)}
    if text not in known:
        raise SettingsError(f"stage a release: --stage {text!r} is none of {', '.join(known)}")
    return known[text]


def _requirement(text: str) -> tuple[str, str | int]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise SettingsError(f"stage a release: --requires {text!r} is not NAME=VALUE")
    return name, int(value) if value.isdigit() else value


def _password(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes().splitlines()[0]
    except (OSError, IndexError) as error:
        raise SettingsError(f"read password file {path}: {error}; its first line is the password") from error
