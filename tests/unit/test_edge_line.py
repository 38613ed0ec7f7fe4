"""What the line makes of the receipts of its session, over a real outbox and inbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ulid import ULID

from edge_runtime import line as module
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.newest import NEWEST
from edge_runtime.line import Line
from schemas.courier import Hello, Receipt
from schemas.depot import TrustState
from schemas.events import DownLetter, Lane
from tests.support.outbox import Bench
from tests.support.platform import until


class Talk:
    """A line without a link: what its session's receipts do."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.inbox = Inbox(folder / "inbox.db", lambda: 0.0)
        self.reports: list[str] = []
        premises: Any = SimpleNamespace(
            outbox=self.bench.outbox,
            inbox=self.inbox,
            identity=None,
            clock=SimpleNamespace(now=None),
            keyring=None,
            dispatcher=None,
            granted=None,
            report=lambda event: self.reports.append(event.name),
            on_answered=lambda: None,
        )
        self.line = Line(premises)
        self.line.states.new_session()

    def hear(self, revision: int, mark: int, **heads: str) -> None:
        lanes: dict[Lane, int] = {"normal": mark}
        said = Receipt(session=self.line.session, epoch=self.bench.outbox.epoch, marks=lanes, heads=heads)
        self.line._apply(DownLetter[Receipt].model_construct(generation=1, revision=revision, data=said))

    def written(self) -> list[int]:
        return json.loads(self.inbox.fact(NEWEST) or "[]")


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    made = Talk(tmp_path)
    yield made
    made.bench.outbox.close()
    made.inbox.close()


def test_a_receipt_that_takes_a_mark_back_is_written_down_at_once(talk: Talk) -> None:
    for number in range(3):
        talk.bench.add(number)
    talk.hear(1_000, 3)
    talk.hear(1_001, 3)
    assert talk.written() == [1, 1_000], "to spare the flash"
    talk.hear(1_002, 1)
    assert talk.written() == [1, 1_002]
    assert talk.bench.outbox.lanes() == {"normal": (3, 1)}


def test_in_a_session_a_mark_lifted_to_where_this_device_begins_is_its_own_unless_a_letter_stands_there(
    talk: Talk,
) -> None:
    bench = talk.bench
    ids = [bench.add(number) for number in range(3)]
    with bench.outbox.database.write("pass numbers over") as connection:
        connection.execute(
            "INSERT INTO losses VALUES (?, 'normal', 4, 9, 'renumbered', 0, NULL, 0)", (bench.outbox.epoch,)
        )
        connection.execute("UPDATE lanes SET issued = 9")
    epoch, last = bench.outbox.epoch, bench.add()
    talk.hear(1, 3, normal=ids[2])
    assert talk.line.answered
    talk.hear(2, 9)
    assert (bench.outbox.epoch, talk.reports) == (epoch, [])
    talk.hear(3, 3)
    talk.hear(4, 9, normal=str(ULID()))
    assert talk.reports == ["outbox.new_epoch"]
    assert bench.outbox.epoch != epoch
    assert bench.all_above() == [(1, last)]


async def test_a_hello_that_fails_as_nobody_expected_is_told_and_said_again(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELLO_AGAIN_S", 0.01)
    said: list[Hello] = []
    told: list[str] = []
    premises: Any = talk.line._premises
    premises.unexpected = lambda work, error: told.append(f"{work} {error!r}")
    premises.clock.synchronised = lambda: True
    state: Any = SimpleNamespace(state=lambda: TrustState(root=1))
    talk.line.trust = state
    monkeypatch.setattr(talk.line.states, "send_now", lambda _kind, hello: said.append(hello))
    held, lanes = talk.inbox.newest_ids, talk.bench.outbox.lanes

    def broken(*_: object) -> Any:
        raise KeyError("torn")

    monkeypatch.setattr(talk.bench.outbox, "lanes", broken)
    hello = asyncio.create_task(talk.line._say_hello())
    await until(lambda: bool(told), "the failure")
    assert (told[0], said) == ("hello KeyError('torn')", [])
    monkeypatch.setattr(talk.inbox, "newest_ids", broken)
    monkeypatch.setattr(talk.bench.outbox, "lanes", lanes)
    await until(lambda: bool(said), "hello without the part that fails")
    assert said[-1].held == []
    own = str(ULID())
    monkeypatch.setattr(talk.inbox, "newest_ids", lambda limit: [own, *held(limit)])
    await until(lambda: said[-1].held == [own], "the whole hello")
    hello.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hello
