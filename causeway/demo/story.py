"""The scenes of the demo, in order. Each does one thing, says it, and notes what it found in the report."""

from __future__ import annotations

import asyncio
from collections import Counter
from statistics import fmean
from urllib.parse import urlsplit

from rich.table import Table

from causeway.audit.collect import read_events
from causeway.demo import models
from causeway.demo.attacker import (
    Eavesdropper,
    send_forged_assignment,
    send_replayed_assignment,
    send_tampered_piece,
)
from causeway.demo.checks import DemoError
from causeway.demo.fleet import DemoDevice, make_fleet
from causeway.demo.forwarder import Forwarder
from causeway.demo.stage import Stage
from schemas.ids import Address
from schemas.scheduler import Limits
from services.kit.api.aggregator import JobRequest, JobView
from services.kit.api.ota import CreateRequest, RolloutView
from services.kit.api.registry import DeviceView
from services.kit.api.scheduler import Requires, SubmitRequest, TaskView
from services.kit.bus import on_bus
from services.kit.permissions import AUDITOR
from services.kit.records import RegistryKeys

TASKS = 12
ROUNDS = 10
CUT_AFTER_ROUND = 3
LETTERS_WHILE_CUT = 5
ROUND_DEADLINE_S = 8.0
MODEL = "digits"
JOB = "digits-federated"
WAVE_DEADLINE_S = 12.0
TIMEOUT_S = 90.0
ENROL_AT_ONCE = 2
"""Devices that enrol at the same time; each starts a worker, and cores are few."""


async def enrol_fleet(stage: Stage, count: int) -> None:
    """Eight devices, each with a token, a shard and a process of its own; one of them behind a link that can be cut."""
    stage.devices = make_fleet(stage.root / "devices", count)
    shards = models.make_shards(stage.root / "data", count)
    stage.say(f"[bold]2 devices[/] {shards.summary}")
    stage.link = Forwarder(stage.settings.bus.host, stage.settings.bus.mqtt_port)
    await stage.link.start()
    scheme = urlsplit(stage.settings.bus.mqtt_url).scheme
    stage.lost.url = f"{scheme}://127.0.0.1:{stage.link.port}"
    for device, shard in zip(stage.devices, shards.shards, strict=True):
        device.prepare(shard, shards.holdout)
    at_once = asyncio.Semaphore(ENROL_AT_ONCE)

    async def enrol(device: DemoDevice) -> None:
        async with at_once:
            await device.enrol(await stage.platform.token(stage.fleet, device.name))
            await device.start()

    await asyncio.gather(*(enrol(device) for device in stage.devices))

    async def all_alive() -> list[DeviceView] | None:
        views = await stage.platform.devices(stage.fleet)
        return views if sum(view.online and view.heartbeat is not None for view in views) == count else None

    views = await stage.until(all_alive, f"a heartbeat of each of {count} devices", TIMEOUT_S)
    stage.report.devices = len(views)
    table = Table("device", "battery", "charging", "temp", "own samples", title="enrolled", title_justify="left")
    for view in views:
        beat = view.heartbeat
        assert beat is not None
        samples = view.capabilities.datasets.get("digits")
        table.add_row(view.device, f"{beat.battery_percent} %", str(beat.charging), f"{beat.temp_c} C", str(samples))
    stage.console.print(table)


async def place_tasks(stage: Stage) -> None:
    """Twelve profiling tasks, placed by capability, battery and heat."""
    stage.say(f"[bold]3 tasks[/] {TASKS} times profile@1; the scheduler says who, and why not the others")
    request = SubmitRequest(
        kind="diagnose", runner="profile@1", fleet=stage.fleet, count=TASKS, max_per_device=2, limits=Limits(wall_s=60)
    )
    submitted = await stage.platform.submit(request)
    done = await _until_done(stage, {task.task for task in submitted})
    stage.report.tasks_done = sum(task.state == "done" and task.results[-1].outcome == "ok" for task in done)
    placed = Counter(result.device for task in done for result in task.results)
    stage.report.tasks_on_weak_device = placed[stage.weak.name]
    table = Table("device", "tasks", "score", "why", title="placement", title_justify="left")
    reasons = {reason.device: reason for task in submitted[:1] for reason in task.reasons}
    for device in stage.devices:
        reason = reasons.get(device.name)
        score = "-" if reason is None or reason.score is None else f"{reason.score:.2f}"
        table.add_row(device.name, str(placed[device.name]), score, reason.why if reason else "-")
    stage.console.print(table)


async def release_baseline(stage: Stage) -> None:
    """Release 0.1.0: trained on one shard alone, signed offline, installed everywhere."""
    stage.say("[bold]4 release 0.1.0[/] trained on one shard alone")
    victim = Address(stage.fleet, stage.victim.name)
    stage.spy = Eavesdropper(victim, stage.victim.jwt())
    await asyncio.to_thread(stage.spy.start, stage.settings, stage.state)
    onnx = await asyncio.to_thread(models.train_baseline, stage)
    await models.release(stage, onnx, MODEL, "0.1.0")
    view = await _roll_out(stage, "0.1.0", waves=[1.0], expect=len(stage.devices))
    stage.say(f"  {_succeeded(view)} of {len(view.devices)} devices report that it runs")


async def evaluate(stage: Stage, devices: list[DemoDevice]) -> float:
    """Every device infers on the held-out images with ONNX Runtime and signs its accuracy."""
    submitted = []
    for device in devices:
        requires = Requires(devices=[device.name], min_battery_percent=0, dataset="holdout")
        submitted += await stage.platform.submit(
            SubmitRequest(
                kind="evaluation",
                runner="evaluate@1",
                inputs={"model": MODEL, "dataset": "holdout"},
                fleet=stage.fleet,
                requires=requires,
            )
        )
    done = await _until_done(stage, {task.task for task in submitted})
    results = [result for task in done for result in task.results if result.outcome == "ok"]
    if len(results) != len(devices):
        problems = [result.message for task in done for result in task.results if result.outcome != "ok"]
        raise DemoError(f"{len(results)} of {len(devices)} devices could evaluate {MODEL}: {problems}")
    accuracies = [float(result.output["accuracy"]) for result in results]
    stage.say(
        f"  accuracy on {results[0].output['samples']} held-out images, by {len(results)} devices' signed letters: "
        f"[bold]{fmean(accuracies):.3f}[/]"
    )
    return round(fmean(accuracies), 4)


async def cut_and_train(stage: Stage) -> None:
    """Federated averaging across all; after some rounds one link is cut, while its process lives on."""
    stage.say(f"[bold]5 training[/] {ROUNDS} rounds of federated averaging; no sample leaves its device")
    request = JobRequest(
        job=JOB,
        fleet=stage.fleet,
        dataset="digits",
        estimator="classifier@1",
        parameters=models.PARAMETERS,
        rounds=ROUNDS,
        min_updates=len(stage.devices) - 2,
        round_deadline_s=ROUND_DEADLINE_S,
    )
    await stage.platform.create_job(request)
    await stage.platform.start_job(JOB)
    told = 0

    async def finished() -> JobView | None:
        nonlocal told
        view = await stage.job(JOB)
        if view is None:
            return None
        for closed in view.history[told:]:
            stage.say(
                f"  round {closed.round}: {closed.updates} of {closed.invited} updates, {closed.samples} samples, "
                f"loss {closed.loss:.3f}, {closed.took_s:.1f} s"
            )
        told = len(view.history)
        if told >= CUT_AFTER_ROUND and not stage.forwarder.is_cut:
            await stage.forwarder.cut()
            await stage.lost.run_host_program(LETTERS_WHILE_CUT)
            stage.say(
                f"  [yellow]the link of {stage.lost.name} is cut; its process lives on, "
                f"and a program on it sends {LETTERS_WHILE_CUT} letters[/]"
            )
        if view.state in {"failed", "stopped"}:
            raise DemoError(f"training {view.state}: {view.reason}")
        return view if view.state == "done" else None

    view = await stage.until(finished, "the training to end", TIMEOUT_S * 2)
    stage.report.rounds = len(view.history)
    if not stage.lost.alive:
        raise DemoError(f"{stage.lost.name} should have lived on without its link")


async def release_trained(stage: Stage) -> None:
    """Release 0.2.0: the trained model, to one canary first and then to the rest."""
    stage.say("[bold]6 release 0.2.0[/] the federated model: a canary, then the rest")
    onnx = await models.export_trained(stage, await stage.platform.job(JOB))
    await models.release(stage, onnx, MODEL, "0.2.0")
    view = await _roll_out(stage, "0.2.0", waves=[1 / len(stage.devices), 1.0], expect=len(stage.devices) - 1)
    states = ", ".join(f"{device.device} {device.state}" for device in view.devices if device.state != "succeeded")
    stage.say(f"  {_succeeded(view)} of {len(view.devices)} devices report that it runs; {states or 'none is missing'}")
    stage.rollout = view.rollout


async def return_of_the_lost(stage: Stage) -> None:
    """The link comes back: the letters that waited arrive, and the device catches up."""
    waiting = stage.waiting_letters(stage.lost)
    stage.report.letters_waiting_at_return = waiting
    await stage.forwarder.mend()
    stage.say(f"[bold]7 return[/] the link of {stage.lost.name} is back; {waiting} letters waited in its outbox")

    async def caught_up() -> bool:
        view = await stage.platform.rollout(stage.rollout)
        states = {device.device: device.state for device in view.devices}
        return states[stage.lost.name] in {"late", "succeeded"} and stage.waiting_letters(stage.lost) == 0

    stage.report.offline_device_caught_up = await stage.until(caught_up, f"{stage.lost.name} to catch up", TIMEOUT_S)
    stage.say(f"  {stage.lost.name} delivered them and runs 0.2.0")


async def attack(stage: Stage) -> None:
    """Three tricks with real keys; the device's own signed letters say that each was refused."""
    stage.say("[bold]8 attack[/] with the depot's, the courier's and the scheduler's real keys")
    assert stage.spy is not None
    victim = Address(stage.fleet, stage.victim.name)
    stored = stage.spy.oldest_assignment()
    await send_tampered_piece(stage.state, stage.settings, victim, models.running_bytes(stage.victim, MODEL))
    await send_forged_assignment(stage.state, stage.settings, victim, stage.spy.assignments[-1])
    await send_replayed_assignment(stage.state, stage.settings, victim, stored)
    keys = RegistryKeys(stage.state)
    async with on_bus(stage.state, stage.settings, AUDITOR) as bus:

        async def answered() -> bool:
            told = await read_events(bus, keys.open_record, victim)
            reasons = Counter((event.name, event.reason) for event in told if event.severity == "high")
            refused = stage.report.refused
            refused.tampered = "wrong_digest" if reasons["piece.refused", "wrong_digest"] else None
            refused.forged = "key_not_allowed" if reasons["letter.refused", "key_not_allowed"] else None
            refused.replayed = "replayed" if reasons["letter.refused", "replayed"] else None
            return None not in {refused.tampered, refused.forged, refused.replayed}

        await stage.until(answered, "signed reports of three refusals", TIMEOUT_S)
    refused = stage.report.refused
    stage.say(f"  {victim}: piece {refused.tampered}, forged {refused.forged}, old assignment {refused.replayed}")


async def _until_done(stage: Stage, tasks: set[str]) -> list[TaskView]:
    async def done() -> list[TaskView] | None:
        views = [view for view in await stage.platform.tasks(stage.fleet) if view.task in tasks]
        return views if len(views) == len(tasks) and all(v.state in {"done", "failed"} for v in views) else None

    return await stage.until(done, f"{len(tasks)} tasks to end", TIMEOUT_S)


async def _roll_out(stage: Stage, version: str, waves: list[float], expect: int) -> RolloutView:
    view = created = await stage.platform.create_rollout(
        CreateRequest(
            model=MODEL,
            version=version,
            fleet=stage.fleet,
            waves=waves,
            canary=stage.devices[0].name,
            deadline_s=WAVE_DEADLINE_S if expect < len(stage.devices) else TIMEOUT_S,
            max_failed_ratio=0.2,
        )
    )
    wave = -1
    async for view in stage.platform.watch_rollout(created.rollout):
        if view.wave != wave:
            names = ", ".join(device.device for device in view.devices if device.wave == view.wave)
            stage.say(f"  wave {view.wave + 1} of {view.waves}: {names}")
            wave = view.wave
    if view.state != "done" or _succeeded(view) < expect:
        problems = "; ".join(f"{d.device} {d.state} {d.message or ''}" for d in view.devices if d.state != "succeeded")
        raise DemoError(f"the rollout of {version} is {view.state} ({view.reason}): {problems}")
    return view


def _succeeded(view: RolloutView) -> int:
    return sum(device.state == "succeeded" for device in view.devices)
