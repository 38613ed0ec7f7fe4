"""What nobody expected, in one part of the agent: it is said, counted and shown, and the other parts go on."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ulid import ULID

from edge_runtime.agent import Agent
from edge_runtime.chores import Chores
from edge_runtime.condition.alarms import Alarms
from edge_runtime.errors import EdgeError, OutboxError, WorkerError
from edge_runtime.identity import Credentials, Identity, save_identity
from edge_runtime.letters.dispatch import Dispatcher
from edge_runtime.line import Line
from edge_runtime.ports import Context
from edge_runtime.sdk import EdgeDevice
from edge_runtime.settings import EdgeSettings
from edge_runtime.trust.keeper import Treasury, TrustKeeper
from edge_runtime.vitals import Vitals
from schemas.events import DownLetter
from schemas.registry import EventReport
from schemas.topics import Channel, Topic
from tests.support.platform import until
from tests.unit.test_edge_inbox import NOW
from tests.unit.test_edge_mailroom import ME, World

UNENCODABLE = "caf\udce9.npz: no such file"
"""As Python names a file whose name is not UTF-8."""


def settled(folder: Path) -> EdgeSettings:
    """The settings of an enrolled device whose broker does not exist."""
    seed = base64.b64encode(bytes(32)).decode()
    identity = Identity(
        fleet="home",
        device="cam-1",
        platform=str(ULID()),
        url="mqtts://127.0.0.1:1",
        root_sha256="0" * 64,
        letter_seed=seed,
        seal_seed=seed,
        credentials=Credentials(jwt="a.b.c", client_id="c" * 20, received=NOW, expires=NOW + timedelta(days=9_999)),
    )
    save_identity(folder / "identity.json", identity)
    return EdgeSettings(state=folder)


class BrokenPart:
    kinds: frozenset[str] = frozenset()

    def __init__(self, context: Context) -> None:
        del context

    async def handle(self, letter: DownLetter[Any]) -> None:
        raise AssertionError(letter)

    async def resume(self) -> None:
        raise ValueError("torn state")

    def close(self) -> None:
        raise TypeError("never opened")


def journals(folder: Path) -> list[Path]:
    """Of databases that were not closed."""
    return list(folder.rglob("*-wal"))


async def served(agent: Agent) -> None:
    """Run it until it has written a status, and stop it."""
    running = asyncio.create_task(agent.run())
    await until(lambda: running.done() or agent._folder.status.exists(), "the agent's status")
    agent.stop()
    async with asyncio.timeout(30):
        await running


async def test_a_part_that_neither_resumes_nor_closes_keeps_nothing_else_from_being_closed(tmp_path: Path) -> None:
    def parts(context: Context) -> Sequence[BrokenPart]:
        return [BrokenPart(context)]

    agent = Agent(settled(tmp_path), parts)
    await served(agent)
    problems = json.loads(agent._folder.status.read_text())["problems"]
    assert any("resume BrokenPart failed: ValueError('torn state')" in problem for problem in problems)
    assert any("close BrokenPart failed: TypeError('never opened')" in problem for problem in problems)
    assert not journals(tmp_path)


async def test_a_status_that_cannot_be_made_keeps_nothing_from_being_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent(settled(tmp_path), lambda _: [])
    status, broken = Vitals.status, asyncio.Event()

    def until_broken(self: Vitals, problems: dict[str, str]) -> dict[str, Any]:
        if broken.is_set():
            raise ValueError("torn row")
        return status(self, problems)

    monkeypatch.setattr(Vitals, "status", until_broken)
    running = asyncio.create_task(agent.run())
    await until(lambda: running.done() or agent._folder.status.exists(), "the agent's status")
    broken.set()
    agent.stop()
    async with asyncio.timeout(30):
        await running
    assert not journals(tmp_path)
    assert [record.fields["work"] for record in caplog.records if record.getMessage() == "agent.unexpected"] == [
        "write status"
    ]


async def test_an_error_text_that_no_event_can_carry_stops_no_letter_behind_it(tmp_path: Path) -> None:
    world, events = World(tmp_path), []

    class OddError(EdgeError):
        reason = "Not A Word"

    class Handler:
        kinds = frozenset({"config"})
        errors = iter([ValueError(UNENCODABLE), OddError("x" * 9_999), None])
        handled = 0

        async def handle(self, letter: DownLetter[Any]) -> None:
            self.handled += 1
            error = next(self.errors)
            if error is not None:
                raise error

    handler = Handler()
    dispatcher = Dispatcher(world.inbox, Alarms(lambda _, event: events.append(event)).handler_failed)
    dispatcher.register([handler])
    for revision in (5, 6, 7):
        dispatcher.submit(letter(revision), "config")
    await until(lambda: not dispatcher._tasks, "the slot")
    assert handler.handled == 3
    assert [event.reason for event in events] == ["failed", "failed"]
    assert "caf\\udce9.npz" in events[0].message
    assert all(event.model_dump_json() for event in events)


def letter(revision: int) -> DownLetter[Any]:
    return DownLetter[Any].model_construct(id=str(ULID()), slot="twin", revision=revision)


async def test_a_failure_that_cannot_be_told_stops_no_letter_behind_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    world.notes.error = RuntimeError("broken")

    def failed(*_: object) -> None:
        raise ValueError("cannot be told")

    dispatcher = Dispatcher(world.inbox, failed)
    dispatcher.register([world.notes])
    dispatcher.submit(letter(1), "config")
    dispatcher.submit(letter(2), "config")
    await until(lambda: not dispatcher._tasks, "the slot")
    assert len(world.notes.seen) == 2
    assert [record.getMessage() for record in caplog.records].count("letters.failure_not_told") == 2


def test_what_fails_again_and_again_is_counted_in_the_status_and_logged_when_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = iter([OutboxError("full"), ValueError("torn row")])

    def broken(*_: object) -> None:
        raise next(errors)

    alarms = Alarms(broken)
    for text in ("a", "a", "b"):
        alarms.unexpected("receipt", ValueError(text))
    assert alarms.problems == {"receipt": "receipt failed: ValueError('b'); the log says where; 3 since the start"}
    assert [str(record.exc_info[1]) for record in caplog.records] == ["a", "b"]
    alarms.report(EventReport(name="x", message=""))
    assert alarms.problems["outbox"] == "full"
    alarms.report(EventReport(name="x", message=""))
    assert alarms.problems["event x"].startswith("event x failed: ValueError('torn row')")


def test_a_message_that_cannot_be_handled_is_told_and_those_behind_it_are_taken(tmp_path: Path) -> None:
    told, taken = [], []

    def piece(raw: bytes) -> None:
        if raw == b"torn":
            raise ValueError("torn fact")
        taken.append(raw)

    def verify(*_: object) -> None:
        raise KeyError("torn key")

    nothing = dict.fromkeys(("outbox", "inbox", "dispatcher", "granted", "on_slice", "on_bundle", "report"))
    premises: Any = SimpleNamespace(
        **nothing,
        identity=lambda: None,
        clock=SimpleNamespace(now=None),
        keyring=SimpleNamespace(verify=verify),
        on_piece=piece,
        unexpected=lambda work, error: told.append((work, repr(error))),
    )
    line = Line(premises)
    line.trust = cast("Any", SimpleNamespace(offer=None))
    for raw in (b"torn", b"whole"):
        line._message(Topic(ME, Channel.DOWN, "piece").mqtt, raw)
    assert taken == [b"whole"]
    assert told == [("message from the platform", "ValueError('torn fact')")]
    line.take_receipt(World(tmp_path).letter())
    assert told[1:] == [("receipt", "KeyError('torn key')")]


async def test_a_trust_pack_that_fails_as_nobody_expected_is_told_and_the_next_one_is_looked_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looked: list[bytes] = []
    refreshed: list[Exception | None] = [None, KeyError("torn receipt"), None]

    async def call(*_: object, **__: object) -> None:
        looked.append(b"pack")
        if len(looked) == 1:
            raise ValueError("torn fact")

    def after() -> None:
        error = refreshed.pop(0)
        if error is not None:
            raise error

    keeper = quiet_keeper(call, after)

    async def refresh(pack: bytes | None) -> None:
        assert pack is not None
        await call()

    keeper.refresh = refresh  # type: ignore[method-assign]
    running = asyncio.create_task(keeper.run())
    for number, error in enumerate(["ValueError('torn fact')", "KeyError('torn receipt')", None]):
        keeper.offer(bytes([number]))
        await until(lambda left=2 - number: running.done() or len(refreshed) == left, "the pack")
        assert not running.done()
        assert (error or "None") in str(keeper.error)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [record.getMessage() for record in caplog.records].count("trust.failed") == 2


async def test_decisions_that_fail_at_an_answer_do_not_end_the_conversation() -> None:
    def broken() -> None:
        raise RuntimeError("probe")

    problems: dict[str, str] = {}
    house: Any = SimpleNamespace(
        alarms=SimpleNamespace(problems=problems),
        conduct=SimpleNamespace(decisions=lambda: SimpleNamespace(bulk="held"), look=broken),
    )
    Chores(house).look_now()
    assert "RuntimeError('probe')" in problems["_look"]


async def test_a_program_learns_at_once_that_its_agent_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    device = EdgeDevice(settled(tmp_path))
    assert device.problem is None

    def broken(*_: object) -> None:
        raise ValueError("no chores")

    monkeypatch.setattr(Chores, "start", broken)
    device.start_heartbeat()
    await until(lambda: device.problem, "the end of the agent")
    assert "no chores" in str(device.problem)
    await until(lambda: [record for record in caplog.records if record.getMessage() == "agent.ended"], "the log")
    assert device.send("sample", {"x": 1}), "letters are kept all the same"
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        device.close()
    assert device.problem is None


def quiet_keeper(call: Callable[..., Awaitable[object]], refreshed: Callable[[], None]) -> TrustKeeper:
    """Of a device that has accepted nothing yet."""
    treasury: Any = SimpleNamespace(
        folder=SimpleNamespace(trust="trust"),
        inbox=SimpleNamespace(fact=lambda _: None, remember=lambda *_: None, time_floors=dict, keep_floors=len),
        keyring=SimpleNamespace(ready=True, reload=lambda: None, keys={}),
        jobs=SimpleNamespace(call=call),
        identity=lambda: SimpleNamespace(root_sha256="0", platform="p", tuf_floors=None),
        now=lambda: NOW,
        system=lambda: NOW,
        refreshed=refreshed,
    )
    return TrustKeeper(cast("Treasury", treasury), list)


async def test_a_trust_pack_that_is_cancelled_ends_though_cleaning_up_fails() -> None:
    begun = asyncio.Event()

    async def call(*_: object, **__: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ProcessLookupError("nothing can be cleaned up")

    keeper = quiet_keeper(call, lambda: None)
    keeper.offer(b"pack")
    running = asyncio.create_task(keeper.run())
    await begun.wait()
    running.cancel()
    await asyncio.wait({running}, timeout=5)
    ended = running.cancelled()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ended


async def test_the_same_failure_of_trust_packs_is_logged_once_and_only_a_judged_one_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = iter(
        [BlockingIOError("fork"), WorkerError("gone", reason="crashed"), WorkerError("old", reason="rollback")]
    )

    async def call(*_: object, **__: object) -> dict[str, Any]:
        error = next(errors, None)
        if error is not None:
            raise error
        return {}

    def refreshed() -> None:
        raise ValueError("torn fact")

    keeper = quiet_keeper(call, refreshed)
    assert [await keeper.look(b"pack") for _ in range(6)] == [False, False, True, True, True, True]
    assert [record.getMessage() for record in caplog.records].count("trust.failed") == 2


def test_an_agent_that_ended_as_it_should_is_no_problem(tmp_path: Path) -> None:
    device = EdgeDevice(settled(tmp_path))
    device._ended = Future()
    device._ended.set_result(None)
    assert device.problem is None
    device.close()
