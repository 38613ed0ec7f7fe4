"""The demo from beginning to end. Every step is the real thing, and every claim is checked."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from causeway.audit.compare import Audit
from causeway.demo.checks import DemoError, DemoReport, unmet_expectations
from causeway.demo.stage import POLL_S, Stage
from causeway.demo.story import (
    attack,
    cut_and_train,
    enrol_fleet,
    evaluate,
    place_tasks,
    release_baseline,
    release_trained,
    return_of_the_lost,
)
from causeway.platform.init import InitOptions, init_platform
from causeway.platform.supervisor import Supervisor, exclusive
from causeway.sdk import Orchestrator
from services.kit import logs
from services.kit.errors import PlatformError, SettingsError
from services.kit.folder import StateFolder

DEVICES = 8
FLEET = "harbour"
DRAIN_TIMEOUT_S = 60.0


def run_demo(*, report: Path, folder: Path | None, keep: bool, as_json: bool) -> int:
    """Run the demo; returns the exit code: 0 if every expectation came true.

    Raises:
        SettingsError: if the folder is in use, or the report cannot be written.
    """
    console = Console(stderr=as_json)
    logs.configure("demo", "ERROR")
    _check(report, folder)
    root = folder or Path(tempfile.mkdtemp(prefix="causeway-demo-"))
    result = DemoReport()
    try:
        code = asyncio.run(_run(root, result, console, keep=keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; every process of the demo was ended")
        code = 130
    report.write_text(result.model_dump_json(indent=2) + "\n")
    if as_json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    if folder is None and code == 0 and not keep:
        shutil.rmtree(root)
    elif code != 0:
        console.print(
            f"logs of the platform: {root / 'platform' / 'logs'}, of the devices: {root / 'devices'}/*/agent.log"
        )
    return code


def _check(report: Path, folder: Path | None) -> None:
    if folder is not None and any(folder.glob("*")):
        raise SettingsError(f"run the demo in {folder}: it is not empty; name a new folder")
    if not report.absolute().parent.is_dir():
        raise SettingsError(f"write {report} after the demo: there is no folder {report.parent}; make it first")


async def _run(root: Path, report: DemoReport, console: Console, *, keep: bool) -> int:
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    loop.add_signal_handler(signal.SIGTERM, main.cancel)
    async with AsyncExitStack() as cleanup:
        try:
            stage = await _set_the_stage(root, report, console, cleanup)
            await _tell(stage)
        except (DemoError, PlatformError) as error:
            report.unmet.append(str(error))
            console.print(f"[red]the demo could not go on:[/] {error}", highlight=False)
            return 1
        report.unmet = unmet_expectations(report, DEVICES)
        _summary(report, console)
        for sentence in report.unmet:
            console.print(f"[red]not as expected:[/] {sentence}", highlight=False)
        if keep:
            await _stay(stage)
    return 1 if report.unmet else 0


async def _set_the_stage(root: Path, report: DemoReport, console: Console, cleanup: AsyncExitStack) -> Stage:
    with report.phase("platform"):
        state = StateFolder(root / "platform")
        settings = init_platform(state, InitOptions(fleet=FLEET, free_ports=True))
        console.print(f"[bold]1 platform[/] {settings.platform} in {state.root}")
        cleanup.enter_context(exclusive(state))
        supervisor = Supervisor(state)
        cleanup.push_async_callback(supervisor.stop)
        await supervisor.start()
        console.print(
            f"  nats-server and {len(supervisor.children) - 1} services are up, devices at {settings.bus.mqtt_url}"
        )
        platform = await cleanup.enter_async_context(Orchestrator(state.root))
    stage = Stage(root, state, settings, platform, console, report, supervisor)
    cleanup.push_async_callback(stage.close)
    return stage


async def _tell(stage: Stage) -> None:
    report = stage.report
    with report.phase("enrol"):
        await enrol_fleet(stage, DEVICES)
    with report.phase("tasks"):
        await place_tasks(stage)
    with report.phase("release_0.1.0"):
        await release_baseline(stage)
    with report.phase("evaluate_0.1.0"):
        report.accuracy_before = await evaluate(stage, stage.devices)
    with report.phase("train"):
        await cut_and_train(stage)
    with report.phase("release_0.2.0"):
        await release_trained(stage)
    with report.phase("return"):
        await return_of_the_lost(stage)
    with report.phase("evaluate_0.2.0"):
        report.accuracy_after = await evaluate(stage, stage.devices)
    with report.phase("attack"):
        await attack(stage)
    with report.phase("audit"):
        await _drain(stage)
        audit = await _audit(stage)
        report.letters_sent = audit.letters_sent
        report.letters_lost = audit.letters_lost
        report.letters_applied_twice = audit.letters_applied_twice
        for line in (*audit.lost, *audit.twice):
            stage.console.print(f"  [red]{line}[/]")


async def _drain(stage: Stage) -> None:
    """Wait until every outbox has its receipts."""
    deadline = asyncio.get_running_loop().time() + DRAIN_TIMEOUT_S
    while waiting := {device.name: n for device in stage.devices if (n := stage.waiting_letters(device))}:
        if asyncio.get_running_loop().time() > deadline:
            raise DemoError(f"letters still wait for a receipt after {DRAIN_TIMEOUT_S:.0f} s: {waiting}")
        await asyncio.sleep(POLL_S)


async def _audit(stage: Stage) -> Audit:
    """Run the audit as a program of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "causeway.audit",
        "--state",
        str(stage.state.root),
        *(f"{FLEET}/{device.name}={device.state / 'outbox.db'}" for device in stage.devices),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, problems = await process.communicate()
    if process.returncode not in {0, 1}:
        raise DemoError(f"the audit failed: {problems.decode()}")
    return Audit.model_validate(json.loads(out))


def _summary(report: DemoReport, console: Console) -> None:
    table = Table(title="What happened", title_justify="left", show_header=False)
    refused = report.refused
    rows: list[tuple[str, object]] = [
        ("devices", report.devices),
        ("tasks done / on the device at 10 % battery", f"{report.tasks_done} / {report.tasks_on_weak_device}"),
        ("rounds of federated averaging", report.rounds),
        ("accuracy on held-out images, 0.1.0 (one shard)", report.accuracy_before),
        ("accuracy on held-out images, 0.2.0 (federated)", report.accuracy_after),
        (
            "letters sent / lost / applied twice",
            f"{report.letters_sent} / {report.letters_lost} / {report.letters_applied_twice}",
        ),
        ("letters that waited while the link was cut", report.letters_waiting_at_return),
        ("offline device caught up", report.offline_device_caught_up),
        ("tampered piece refused as", refused.tampered),
        ("forged assignment refused as", refused.forged),
        ("replayed assignment refused as", refused.replayed),
        ("seconds", ", ".join(f"{name} {took:.0f}" for name, took in report.seconds.items())),
        ("seconds in all", f"{sum(report.seconds.values()):.0f}"),
    ]
    for name, value in rows:
        table.add_row(name, str(value))
    console.print(table)


async def _stay(stage: Stage) -> None:
    state, http = stage.state, stage.settings.http
    stage.console.print(
        "the platform stays up. In another terminal:\n"
        f"  export CAUSEWAY_STATE={state.root} PATH={Path(sys.executable).parent}:$PATH\n"
        "  causeway device list; causeway rollout list; causeway task list; causeway train list\n"
        f"  curl http://{http.host}:{http.gateway_port}/api/devices\n"
        f"  devices' logs: {stage.root / 'devices'}/*/agent.log\n"
        "Ctrl-C ends it.",
        soft_wrap=True,
        highlight=False,
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    await stop.wait()
