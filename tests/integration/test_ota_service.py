"""The ota service on the real bus: waves, letters, signed reports, and what a kill leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from ulid import ULID

from schemas.aggregator import Artifact
from schemas.envelope import Signer
from schemas.events import DownLetter
from schemas.ota import Assign, ReleaseCustom, Report
from services.kit import rpc
from services.kit.api.depot import ReleaseRequest, ReleaseView
from services.kit.api.ota import CreateRequest, RolloutRequest, RolloutView
from services.kit.bus import Bus, connect
from services.kit.errors import NotFoundError, RefusedError
from services.kit.rpc import Nothing
from tests.support.fleet import StandInFleet
from tests.support.platform import LivePlatform, until

RIGHT = "a" * 64
RELEASE = ReleaseView(
    model="digits",
    version="0.2.0",
    target="models/digits/0.2.0/model.onnx",
    artifact=Artifact(sha256=RIGHT, length=1_234, recipe="c" * 64, pieces=1),
    custom=ReleaseCustom(
        model="digits",
        version="0.2.0",
        seq=2,
        recipe="c" * 64,
        pieces=1,
        created=datetime(2026, 1, 1, tzinfo=UTC),
    ),
)


async def release(request: ReleaseRequest) -> dict[str, Any]:
    """What the depot answers."""
    if (request.model, request.version) != (RELEASE.model, RELEASE.version):
        raise NotFoundError(f"there is no release {request.model} {request.version}")
    return RELEASE.model_dump(mode="json")


class World:
    """A fleet of three, the depot's answer, and an operator."""

    def __init__(self, live: LivePlatform, fleet: StandInFleet, operator: Bus) -> None:
        self.live = live
        self.fleet = fleet
        self.operator = operator

    async def create(self, **changes: Any) -> RolloutView:
        values = {"model": "digits", "version": "0.2.0", "fleet": "harbour", "waves": [1.0]}
        return RolloutView.model_validate(await self.ask("create", CreateRequest.model_validate(values | changes)))

    async def show(self, rollout: str) -> RolloutView:
        return RolloutView.model_validate(await self.ask("show", RolloutRequest(rollout=rollout)))

    async def ask(self, verb: str, request: Any) -> Any:
        return await rpc.call(self.operator, "ota", verb, request)

    async def states(self, rollout: str) -> dict[str, str]:
        return {progress.device: progress.state for progress in (await self.show(rollout)).devices}

    async def reach(self, rollout: str, state: str) -> RolloutView:
        async def probe() -> RolloutView | None:
            found = await self.show(rollout)
            return found if found.state == state else None

        return await until(probe, f"the rollout to be {state}")

    async def mail(self, count: int) -> dict[str, DownLetter[Assign]]:
        """Assignments by device, once there are so many."""

        async def probe() -> dict[str, DownLetter[Assign]] | None:
            found = {letter.recipient.split("/")[-1]: letter for letter in await self.fleet.mailbox("assign")}
            return found if len(found) == count else None

        return await until(probe, f"{count} assignments")

    async def report(self, letter: DownLetter[Assign], device: str, **changes: Any) -> str:
        letter_id = str(ULID())
        values = {
            "rollout": letter.data.rollout,
            "model": "digits",
            "step": "confirm",
            "outcome": "ok",
            "running_sha256": RIGHT,
            "revision": letter.revision,
            "took_s": 1,
        }
        await self.fleet.send(self.device(device), "report", Report.model_validate(values | changes), letter_id)
        return letter_id

    def device(self, name: str) -> Any:
        return next(device for address, device in self.fleet.devices.items() if address.device == name)


@pytest.fixture
async def world(live: LivePlatform) -> AsyncIterator[World]:
    fleet = await StandInFleet.start(live)
    depot = await connect(live.state, live.settings, "depot")
    rpc.serve(depot, "depot", "show", ReleaseRequest, release)
    await depot.broker.start()
    operator = await connect(live.state, live.settings, "operator")
    for name in ("cam-1", "cam-2", "cam-3"):
        await fleet.add(name)
    await asyncio.to_thread(live.start_service, "ota")
    yield World(live, fleet, operator)
    for bus in (depot, operator):
        await bus.close()
    await fleet.close()


async def test_the_canary_goes_first_and_each_report_counts_once(world: World) -> None:
    made = await world.create(waves=[0.1, 1.0], canary="cam-2")
    letters = await world.mail(1)
    canary = letters["cam-2"]
    assert (canary.data.sha256, canary.data.seq, canary.data.wave) == (RIGHT, 2, 0)
    assert (canary.slot, canary.source) == ("digits", "/services/ota")
    assert await world.states(made.rollout) == {"cam-1": "pending", "cam-2": "assigned", "cam-3": "pending"}

    accepted = await world.report(canary, "cam-2", step="accept", running_sha256=None)
    confirmed = await world.report(canary, "cam-2")
    letters = await world.mail(3)
    assert letters["cam-1"].data.deadline == letters["cam-1"].expires
    for name in ("cam-1", "cam-3"):
        await world.report(letters[name], name)
        await world.report(letters[name], name)
    done = await world.reach(made.rollout, "done")
    assert done.counts == {"succeeded": 3}
    progress = {entry.device: entry for entry in done.devices}
    assert progress["cam-2"].applied == [accepted, confirmed]
    assert len(progress["cam-1"].applied) == 1
    assert progress["cam-1"].running_sha256 == RIGHT
    [listed] = await world.ask("list", Nothing())
    assert (listed["state"], listed["counts"], listed["devices"]) == ("done", {"succeeded": 3}, [])
    metrics = world.live.metrics("ota")
    assert 'causeway_rollouts{state="done"} 1.0' in metrics
    assert 'causeway_reports_total{outcome="ok"} 4.0' in metrics


async def test_only_the_devices_own_signature_makes_success(world: World) -> None:
    made = await world.create()
    letters = await world.mail(3)
    thief = world.device("cam-1")
    own, thief.signer = thief.signer, Signer.generate()
    await world.report(letters["cam-1"], "cam-1")
    thief.signer = own
    await world.report(letters["cam-2"], "cam-2")

    async def second() -> bool:
        return (await world.states(made.rollout))["cam-2"] == "succeeded"

    await until(second, "the honest report to count")
    assert (await world.states(made.rollout))["cam-1"] == "assigned"
    rejected = 'causeway_rejected_total{kind="report",reason="unknown_key",service="ota"} 1.0'
    assert rejected in world.live.metrics("ota")


async def test_a_failed_canary_halts_and_the_rest_is_never_asked(world: World) -> None:
    made = await world.create(waves=[0.1, 1.0], canary="cam-1")
    letters = await world.mail(1)
    await world.report(
        letters["cam-1"], "cam-1", step="smoke", outcome="failed", reason="smoke_mismatch", running_sha256=None
    )
    halted = await world.reach(made.rollout, "halted")
    assert "cam-1 failed (smoke_mismatch)" in (halted.reason or "")
    assert len(await world.mail(1)) == 1


async def test_silence_is_failure_and_a_late_device_is_shown_as_late(world: World) -> None:
    made = await world.create(deadline_s=1.0, max_failed_ratio=0.5)
    letters = await world.mail(3)
    for name in ("cam-1", "cam-2"):
        await world.report(letters[name], name)
    await world.reach(made.rollout, "done")
    assert (await world.states(made.rollout))["cam-3"] == "silent"
    await world.report(letters["cam-3"], "cam-3")

    async def caught_up() -> bool:
        return (await world.states(made.rollout))["cam-3"] == "late"

    await until(caught_up, "the device to catch up")


async def test_a_killed_service_goes_on_with_the_same_letters(world: World) -> None:
    made = await world.create(waves=[0.5, 1.0])
    first = await world.mail(2)
    world.live.kill("ota")
    # The worst moment: the record says assigned, the letters were never stored.
    await world.fleet.courier.js.purge_stream("OUT")
    await asyncio.to_thread(world.live.start_service, "ota")
    again = await world.mail(2)
    assert {name: (mail.id, mail.revision) for name, mail in again.items()} == {
        name: (mail.id, mail.revision) for name, mail in first.items()
    }
    world.live.kill("ota")
    for name, letter in again.items():
        await world.report(letter, name)
    await asyncio.to_thread(world.live.start_service, "ota")
    name, letter = await _third(world, set(first))
    await world.report(letter, name)
    done = await world.reach(made.rollout, "done")
    assert done.counts == {"succeeded": 3}
    assert all(len(progress.applied) == 1 for progress in done.devices)


async def _third(world: World, known: set[str]) -> tuple[str, DownLetter[Assign]]:
    async def probe() -> tuple[str, DownLetter[Assign]] | None:
        for letter in await world.fleet.mailbox("assign"):
            name = letter.recipient.split("/")[-1]
            if name not in known:
                return name, letter
        return None

    return await until(probe, "the assignment of the second wave")


async def test_bad_requests_get_the_next_step(world: World) -> None:
    with pytest.raises(NotFoundError, match=r"there is no release digits 9\.9\.9"):
        await world.create(version="9.9.9")
    with pytest.raises(NotFoundError, match="not enrolled in fleet harbour: cam-9; see `causeway device list`"):
        await world.create(devices=["cam-1", "cam-9"])
    with pytest.raises(RefusedError, match="fleet moon has no enrolled device"):
        await world.create(fleet="moon")
    with pytest.raises(RefusedError, match=r"the last must be 1\.0"):
        await world.create(waves=[0.5])
    made = await world.create()
    with pytest.raises(RefusedError, match=f"rollout {made.rollout} of 0.2.0 still runs in harbour"):
        await world.create()
    aborted = RolloutView.model_validate(await world.ask("abort", RolloutRequest(rollout=made.rollout)))
    assert (aborted.state, aborted.reason) == ("aborted", "aborted by an operator")
    with pytest.raises(NotFoundError, match="there is no rollout"):
        await world.show(str(ULID()))
