"""The carriers inside the agent, with a synced folder that is not always there."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from edge_runtime.carriers.folder import FolderCarrier, FolderError
from edge_runtime.carriers.service import TURN_S, CarrierService, Surroundings
from edge_runtime.conduct.policy import Choice
from edge_runtime.settings import CarrierSettings, EdgeSettings
from schemas.bundles import CarriedLetter, Contents
from tests.support.carriers import Realm, Traveller
from tests.support.platform import until

HEARD = Contents(letters=[CarriedLetter(kind="receipt", envelope="r")])


class Agent:
    """The part of one that the carriers see."""

    def __init__(self, of: Traveller, synced: Path) -> None:
        self.heard: list[bytes] = []
        self.asked: list[bool] = []
        line: Any = SimpleNamespace(
            answered=False,
            trust=SimpleNamespace(state=of.keyring.state),
            states=SimpleNamespace(pending_gots=list),
            take_receipt=self.heard.append,
        )
        self.service = CarrierService(
            Surroundings(
                settings=EdgeSettings(carriers=CarrierSettings(folder=synced, folder_poll_s=0.2)),
                folder=of.folder,
                line=line,
                outbox=of.outbox,
                inbox=of.inbox,
                keyring=of.keyring,
                clock=of.clock,
                pieces=SimpleNamespace(trim=lambda: 0),  # type: ignore[arg-type]
                identity=lambda: of.identity,
                choose=self._choose,
                send=lambda *_: None,
                report=lambda _: None,
            )
        )

    def _choose(self, lane: object, waiting_bytes: int, *, neighbours: int, folder: bool) -> Choice:
        self.asked.append(folder)
        return Choice("folder" if folder else "wait", "test")

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.service.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.service.close()


async def test_a_dead_mount_keeps_nothing_from_being_opened_and_is_told(
    pair: tuple[Traveller, Traveller], realm: Realm, tmp_path: Path
) -> None:
    # Whoever asks for a name that long is answered with an error, as by a mount whose server is gone.
    dead = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match="too long"):
        dead.is_dir()
    async with Agent(pair[0], dead) as agent:
        for parcel in realm.answer(pair[0], HEARD):
            agent.service.down(parcel.write())
        await until(lambda: agent.heard == [b"r"], "the bundle to be opened")
        await until(lambda: any("too long" in problem for problem in agent.service.problems()), "the problem")
        assert not any(agent.asked)


async def test_the_folder_is_a_way_while_the_last_look_found_it(pair: tuple[Traveller, Traveller], stick: Path) -> None:
    async with Agent(pair[0], stick) as agent:
        pair[0].say()
        agent.service._wake.set()
        await until(lambda: list((stick / "causeway" / "up").glob("*.bundle")), "the letter in the folder")
        gone = await asyncio.to_thread(stick.rename, stick.with_name("elsewhere"))
        before = len(agent.asked)

        def seen(*, there: bool) -> bool:
            agent.service._wake.set()
            return there in agent.asked[before:]

        await until(lambda: seen(there=False), "the folder to be missed")
        await asyncio.to_thread(gone.rename, stick)
        before = len(agent.asked)
        await until(lambda: seen(there=True), "the folder to be back")
    assert agent.service.problems() == []


async def test_what_cannot_be_read_in_the_folder_keeps_nothing_from_being_written(
    pair: tuple[Traveller, Traveller], stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stick / "causeway").mkdir()

    def broken(_: FolderCarrier) -> None:
        raise FolderError("read the folder: Permission denied")

    monkeypatch.setattr(FolderCarrier, "take", broken)
    async with Agent(pair[0], stick) as agent:
        pair[0].say()
        agent.service._wake.set()
        await until(lambda: list((stick / "causeway").rglob("up/*.bundle")), "the letter in the folder")
        await until(lambda: any("Permission" in problem for problem in agent.service.problems()), "the problem")


async def test_carriers_end_when_they_are_cancelled_though_cleaning_up_fails(
    pair: tuple[Traveller, Traveller], stick: Path
) -> None:
    agent = Agent(pair[0], stick)
    begun = asyncio.Event()

    async def turn() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("nothing can be cleaned up")

    agent.service._turn = turn  # type: ignore[method-assign]
    running = asyncio.create_task(agent.service.run())
    await begun.wait()
    running.cancel()
    await asyncio.wait({running}, timeout=TURN_S / 2)
    ended = running.cancelled()
    agent.service._turn = asyncio.Event().wait  # type: ignore[assignment, method-assign]
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.gather(running, return_exceptions=True)
    agent.service.close()
    assert ended
