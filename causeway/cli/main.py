"""Entry point of `causeway`: puts the nouns together, and the commands that have none."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from causeway.cli import bundle, data, device, letters, release, rollout, task, train
from causeway.cli.common import DEFAULT_STATE, Json, State, console, errors, explained, print_json
from causeway.cli.options import whole
from causeway.cli.simulate import simulate
from causeway.demo.run import run_demo
from causeway.platform.init import InitOptions, init_platform
from causeway.platform.supervisor import Supervisor, exclusive
from services.kit import logs
from services.kit.folder import StateFolder
from services.kit.settings import StoreSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Causeway: register devices, ship signed models to them, run tasks on them and train across them.",
)
for noun, sub in (
    ("device", device.app),
    ("release", release.app),
    ("rollout", rollout.app),
    ("task", task.app),
    ("train", train.app),
    ("data", data.app),
    ("bundle", bundle.app),
    ("letters", letters.app),
):
    app.add_typer(sub, name=noun)
app.command()(simulate)


@app.command()
def init(
    host: Annotated[str, typer.Option("--host", help="Address that devices and services reach.")] = "127.0.0.1",
    fleet: Annotated[str, typer.Option("--fleet", help="Fleet of commands that name none.")] = "home",
    tls: Annotated[bool, typer.Option("--tls/--no-tls", help="Encrypt both listeners; off on 127.0.0.1 only.")] = True,
    nats_port: Annotated[int | None, whole("--nats-port", text="Default 4222.", high=65_535)] = None,
    mqtt_port: Annotated[int | None, whole("--mqtt-port", text="Default 8883, without TLS 1883.", high=65_535)] = None,
    gateway_port: Annotated[int | None, whole("--gateway-port", text="Default 8080.", high=65_535)] = None,
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Choose free ports instead of the defaults.")
    ] = False,
    s3_endpoint: Annotated[str | None, typer.Option("--s3-endpoint", help="Keep artifacts in S3 at host:port.")] = None,
    s3_bucket: Annotated[str, typer.Option("--s3-bucket", help="Bucket in it.")] = "causeway",
    s3_credentials: Annotated[
        Path | None,
        typer.Option("--s3-credentials", help="File: access key, then secret.", exists=True, dir_okay=False),
    ] = None,
    s3_secure: Annotated[bool, typer.Option("--s3-tls/--s3-no-tls", help="Speak HTTPS to it.")] = True,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Make a new platform: keys, credentials, certificates, trust and configuration.

    Example: causeway init --host 192.0.2.10 --fleet harbour
    """
    folder = StateFolder(state.absolute())
    store = StoreSettings()
    if s3_endpoint is not None:
        store = StoreSettings(
            kind="s3", endpoint=s3_endpoint, bucket=s3_bucket, credentials=s3_credentials, secure=s3_secure
        )
    with explained():
        settings = init_platform(
            folder,
            InitOptions(
                host=host,
                tls=tls,
                fleet=fleet,
                nats_port=nats_port,
                mqtt_port=mqtt_port,
                gateway_port=gateway_port,
                free_ports=free_ports,
                store=store,
            ),
        )
    if as_json:
        print_json({"state": str(folder.root), **settings.model_dump(mode="json")})
        return
    console.print(f"made platform [bold]{settings.platform}[/] in {folder.root}")
    console.print(
        f"its release keys are development keys (one signature is enough) in {folder.offline_keys}: "
        "for production move them off this machine"
    )
    console.print("next: [bold]causeway up[/]")


@app.command()
def up(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Run the whole platform on this machine until Ctrl-C; with --json, one object once it is up.

    Example: causeway up --state .causeway
    """
    folder = StateFolder(state.absolute())
    logs.configure("up")
    said = errors if as_json else console

    async def serve() -> None:
        supervisor = Supervisor(folder)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        starting = asyncio.create_task(supervisor.start(lambda line: said.print(f"[dim]{line}[/]")))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                bus, http = supervisor.settings.bus, supervisor.settings.http
                api = f"http://{http.host}:{http.gateway_port}"
                if as_json:
                    print_json(
                        {"devices": bus.mqtt_url, "services": bus.nats_url, "api": api, "logs": str(folder.logs)}
                    )
                said.print(f"[bold green]up[/]: devices at {bus.mqtt_url}, services at {bus.nats_url}")
                said.print(f"API at {api}, logs in {folder.logs}")
                said.print("next: [bold]causeway device enrol NAME[/]; Ctrl-C ends the platform")
                await stop.wait()
            starting.cancel()
        finally:
            await supervisor.stop()
        said.print("stopped")

    with explained(), exclusive(folder):
        asyncio.run(serve())


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the platform up at the end and say how to look at it.")
    ] = False,
    report: Annotated[Path, typer.Option("--report", help="Where to write the report.")] = Path("demo-report.json"),
    folder: Annotated[Path | None, typer.Option("--folder", help="State folder (default: a temporary one).")] = None,
    as_json: Json = False,
) -> None:
    """Show the whole of it on this machine: eight devices enrol, work, train, update and withstand an attacker.

    Example: causeway demo --keep
    """
    with explained():
        code = run_demo(report=report, folder=folder, keep=keep, as_json=as_json)
    raise typer.Exit(code)


def main() -> None:
    """Console script."""
    logs.configure("causeway", "ERROR")
    app()


if __name__ == "__main__":
    main()
