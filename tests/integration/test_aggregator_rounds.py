"""The aggregator as a process on the real bus: rounds, repetition, refusals, and what `kill -9` leaves behind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nats.errors import Error as NatsError

from causeway.learning.export import classifier_of
from edge_runtime.learning.vector import pack, read_weights, unpack
from schemas.aggregator import Artifact, Update
from services.aggregator.entries import Accepted, Entry
from services.aggregator.fx1 import Accumulator
from services.aggregator.handlers import Aggregator
from services.aggregator.store import JobStore, Ledger
from services.kit.api.aggregator import JobName, JobRequest, JobView
from services.kit.bus import connect
from services.kit.errors import NotFoundError, PlatformError, RefusedError
from services.kit.streams import ensure_owned
from tests.support.learning_world import JOB, World
from tests.support.platform import LivePlatform, until


@pytest.fixture
async def world(live: LivePlatform, tmp_path: Path) -> AsyncIterator[World]:
    async with World.start(live, tmp_path / "shards") as world:
        yield world


def effects(entries: list[Entry]) -> Counter[tuple[int, str]]:
    return Counter((entry.round, entry.device) for entry in entries if isinstance(entry, Accepted))


async def test_rounds_end_in_the_exact_mean_and_in_a_good_model(world: World) -> None:
    await world.add_devices(4)
    world.live.start_service("aggregator")
    await world.begin(rounds=4)
    view = await world.answer_all_until_done()
    assert [past.updates for past in view.history] == [4, 4, 4, 4]
    assert view.weights == view.history[-1].weights
    assert view.history[-1].accuracy is not None
    assert view.history[-1].accuracy > 0.9

    entries = await world.ledger()
    assert [entry.entry for entry in entries].count("closed") == 4
    assert set(effects(entries).values()) == {1}
    await world.store.fetch(view.weights.sha256, world.folder / "final")
    final = read_weights((world.folder / "final").read_bytes())
    total = Accumulator(sum(tensor.size for tensor in final.values()))
    for entry in reversed(entries):  # in another order than they came
        if isinstance(entry, Accepted) and entry.round == 4:
            total.add(np.frombuffer(base64.b64decode(entry.vector), "<f4"), entry.w)
    shapes = {name: tensor.shape for name, tensor in final.items()}
    assert pack(final) == pack(unpack(total.mean(), shapes))
    with np.load(world.folder / "holdout.npz") as held:
        assert classifier_of(final).evaluate(held["x"], held["y"])["accuracy"] >= 0.9

    page = world.live.metrics("aggregator")
    assert "training_rounds_completed 4.0" in page
    assert 'causeway_updates_total{outcome="accepted"} 16.0' in page
    assert "aggregation_time_seconds_count 4.0" in page
    assert "device_training_time_seconds_count 16.0" in page


async def test_kill_9_at_any_time_loses_and_repeats_nothing(world: World) -> None:
    """Killed after each letter; every envelope comes twice, as after a crash between append and acknowledgement."""
    await world.add_devices(3)
    world.live.start_service("aggregator")
    await world.begin(rounds=2)
    for number in (1, 2):

        async def invited() -> list[Any]:
            found = await world.invitations()
            return found if len(found) == 3 else []

        letters = await until(invited, f"the letters of round {number}")
        for letter in letters:
            sent = await world.answer(letter)
            if letter is letters[1]:

                async def stored(sent: str = sent) -> bool:
                    return any(getattr(entry, "letter", None) == sent for entry in await world.ledger())

                await until(stored, "the update to be in the ledger")
            world.live.kill("aggregator")
            await world.send_again(sent)
            world.live.start_service("aggregator")
            # A repeated invitation is the same letter.
            posted = [letter for letter in await world.fleet.mailbox("round") if letter.data.round == number]
            assert len(posted) == 3

    async def done() -> bool:
        return (await world.show()).state == "done"

    await until(done, "the job to be done")
    entries = await world.ledger()
    assert effects(entries) == {(number, f"cam-{n}"): 1 for number in (1, 2) for n in (1, 2, 3)}
    for update_id in world.raws:
        await world.send_again(update_id)

    last = await world.answer(letters[0], metrics={"loss": 1.0})

    async def last_read() -> list[Entry]:
        found = await world.ledger()
        return found if getattr(found[-1], "letter", None) == last else []

    assert (await until(last_read, "the letter behind every repetition to be read"))[:-1] == entries
    assert not [entry for entry in entries if entry.entry == "refused"]


async def test_a_restart_of_the_bus_in_the_middle_of_a_round_is_lived_through(world: World) -> None:
    await world.add_devices(2)
    world.live.start_service("aggregator")
    await world.begin(rounds=2)

    async def invited() -> list[Any]:
        found = await world.invitations()
        return found if len(found) == 2 else []

    first, _ = await until(invited, "the letters")
    await world.answer(first)

    async def received() -> bool:
        return bool((await world.show()).received)

    await until(received, "the first update to count")
    world.live.kill("nats-server")
    world.live.start_bus()

    async def back() -> bool:
        try:
            await world.fleet.mailbox("round")
            return bool((await world.show()).received)
        except (NatsError, PlatformError):
            return False

    await until(back, "everyone to be connected again")
    view = await world.answer_all_until_done()
    assert [past.updates for past in view.history] == [2, 2]
    assert set(effects(await world.ledger()).values()) == {1}


async def test_bad_updates_are_refused_with_a_reason_and_the_round_goes_on(world: World) -> None:
    await world.add_devices(3)
    world.live.start_service("aggregator")
    await world.begin(rounds=1, min_updates=1)

    async def invited() -> list[Any]:
        found = await world.invitations()
        return found if len(found) == 3 else []

    first, second, third = sorted(await until(invited, "the letters"), key=lambda letter: letter.recipient)
    raw = np.full(2_410, np.nan, "<f4").tobytes()
    poison = {
        "vector": base64.b64encode(raw).decode(),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "length": len(raw),
    }
    await world.answer(first, **poison)
    await world.answer(second, outcome="refused", reason="battery", message="battery at 4 %", vector=None, samples=0)
    counted = await world.answer(third)

    async def done() -> JobView | None:
        view = await world.show()
        return view if view.state == "done" else None

    view = await until(done, "the job to be done")
    assert (view.history[0].updates, view.history[0].invited) == (1, 3)
    late = await world.answer(third, metrics={"loss": 1.0})
    await world.send_again(counted)

    async def late_refused() -> list[Entry]:
        entries = await world.ledger()
        return entries if any(getattr(entry, "letter", None) == late for entry in entries) else []

    entries = await until(late_refused, "the late update to be refused")
    reasons = {entry.device: (entry.by, entry.reason) for entry in entries if entry.entry == "refused"}
    assert reasons == {
        "cam-1": ("aggregator", "out_of_range"),
        "cam-2": ("device", "battery"),
        "cam-3": ("aggregator", "stale_round"),
    }
    assert effects(entries) == {(1, "cam-3"): 1}


async def test_operators_get_clear_refusals(world: World) -> None:
    world.live.start_service("aggregator")
    with pytest.raises(NotFoundError, match="there is no job nope"):
        await world.call("show", JobName(job="nope"))
    with pytest.raises(RefusedError, match="yolo@9: not installed"):
        await world.call("create", world.request(estimator="yolo@9", min_updates=1))
    with pytest.raises(RefusedError, match="no parameter 'lrr'"):
        await world.call("create", world.request(parameters={"lrr": 1}, min_updates=1))
    with pytest.raises(RefusedError, match="a letter carries 34816"):
        await world.call("create", world.request(parameters={"hidden": 4_000}, min_updates=1))
    await world.call("create", world.request(min_updates=1, devices=["cam-1"]))
    with pytest.raises(RefusedError, match="there is one of this name"):
        await world.call("create", world.request(min_updates=1))
    with pytest.raises(RefusedError, match="0 enrolled devices of fleet harbour"):
        await world.call("start", JobName(job=JOB))
    await world.add_devices(1)

    async def started() -> bool:
        try:
            await world.call("start", JobName(job=JOB))
        except RefusedError:
            return False
        return True

    await until(started, "the aggregator to know the device")
    await world.call("stop", JobName(job=JOB))
    view = await world.show()
    assert view.state == "stopped"
    assert [item["job"] for item in await world.call("list")] == [JOB]


class Elsewhere:
    """The platform of an aggregator that runs inside the test."""

    def __init__(self) -> None:
        self.posted: list[str] = []

    def candidates(self, job: Any) -> list[str]:
        return ["cam-1", "cam-2"]

    def away(self, job: Any) -> frozenset[str]:
        return frozenset()

    async def post(self, draft: Any, now: datetime) -> None:
        self.posted.append(draft.letter_id)

    async def publish(self, data: bytes) -> Artifact:
        return Artifact(sha256=hashlib.sha256(data).hexdigest(), length=len(data), recipe="a" * 64, pieces=1)

    async def announce(self, event: str, data: Any) -> None:
        pass


async def test_a_rival_on_the_same_ledger_is_noticed_and_followed(live: LivePlatform) -> None:
    bus = await connect(live.state, live.settings, "aggregator")
    try:
        await ensure_owned(bus.js, "aggregator")
        store = JobStore(await bus.bucket("jobs"))
        one = Aggregator(Ledger(bus), store, Elsewhere())
        request = JobRequest(job=JOB, fleet="harbour", dataset="digits", estimator="classifier@1", min_updates=2)
        await one.create(request)
        await one.start(JobName(job=JOB))
        two = Aggregator(Ledger(bus), store, Elsewhere())
        await two.load()
        now = datetime.now(UTC)
        runners = [aggregator._runners[JOB] for aggregator in (one, two)]
        await runners[0].step(now)
        await runners[1].step(now)
        await runners[0].step(now)
        assert [entry.entry async for _, entry in Ledger(bus).read(JOB, after=0)] == ["started", "opened"]
        assert runners[0].view.invited == runners[1].view.invited == ["cam-1", "cam-2"]
        vector = np.zeros(2_410, "<f4").tobytes()
        update = Update(
            job=JOB,
            round=1,
            attempt=1,
            base=hashlib.sha256(b"").hexdigest(),
            samples=3,
            sha256=hashlib.sha256(vector).hexdigest(),
            length=len(vector),
            vector=base64.b64encode(vector).decode(),
        )
        opened = [entry async for _, entry in Ledger(bus).read(JOB, after=0)][1]
        update = update.model_copy(update={"base": opened.base.sha256})  # type: ignore[union-attr]
        taken = await asyncio.gather(*(runner.take("cam-1", "letter-1", update) for runner in runners))
        assert sorted(taken) == ["accepted", "duplicate"]
        assert len([entry async for _, entry in Ledger(bus).read(JOB, after=0)]) == 3
        assert await Ledger(bus).holds_letter(JOB, "letter-1", after=0)
        assert not await Ledger(bus).holds_letter(JOB, "letter-2", after=0)
    finally:
        await bus.close()
