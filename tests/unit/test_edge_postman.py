"""What the postman keeps from one connection to the next."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_runtime.errors import OutboxError
from edge_runtime.letters import postman as module
from edge_runtime.letters import trouble
from edge_runtime.letters.postman import Post, Postman
from edge_runtime.letters.sending import MAX_WAIT_S, Grant, RoundTrip, Run
from edge_runtime.letters.trouble import FIRST_AGAIN_S, MAX_AGAIN_S, Trouble
from edge_runtime.link.link import Measured
from schemas.envelope import parse
from tests.support.outbox import Bench
from tests.support.platform import until
from tests.unit.test_edge_unsendable import IDENTITY


@pytest.mark.parametrize(
    ("path_s", "answered_s", "wait_s"), [(0.2, None, 1.1), (0.2, 0.1, 1.1), (0.2, 6.0, 18.5), (None, None, MAX_WAIT_S)]
)
def test_a_slow_connection_is_forgotten_where_the_next_one_is_known(
    path_s: float | None, answered_s: float | None, wait_s: float
) -> None:
    made: dict[str, Any] = dict.fromkeys(("outbox", "identity", "clock"))
    link: Any = SimpleNamespace(measured=lambda: SimpleNamespace(round_trip_s=path_s))
    postman = Postman(Post(link=link, **made))
    postman.round_trip = RoundTrip().with_sample(40.0)
    postman.begin({}, answered_s)
    assert postman.round_trip.wait_s == pytest.approx(wait_s)


class Office:
    """A postman with a real outbox, over a link that takes all."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.sent: list[tuple[str, int]] = []
        self.granted: Callable[[], Grant] = Grant
        link: Any = SimpleNamespace(
            measured=Measured, use_congestion=lambda _: None, room=lambda *_: True, publish=self._publish
        )
        clock: Any = SimpleNamespace(now=lambda: datetime.now(UTC), life=lambda life: life)
        identity: Any = IDENTITY
        self.postman = Postman(Post(self.bench.outbox, link, lambda: identity, clock, self._granted))

    def _granted(self) -> Grant:
        return self.granted()

    def _publish(self, _topic: str, raw: bytes, _urgency: object) -> bool:
        event = json.loads(parse(raw).body)
        self.sent.append((event["lane"], event["sequence"]))
        return True

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[asyncio.Task[None]]:
        self.postman.begin({})
        task = asyncio.create_task(self.postman.run())
        yield task
        assert not task.done(), "whatever failed"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trouble, "FIRST_AGAIN_S", 0.01)
    monkeypatch.setattr(module, "POLL_S", 0.02)
    made = Office(tmp_path)
    yield made
    made.bench.outbox.close()


@pytest.mark.parametrize("where", ["run_above", "load"])
async def test_what_nobody_expected_in_one_lane_stops_no_other_and_passes_nothing_over(
    office: Office, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    for lane in ("normal", "normal", "control", "bulk"):
        office.bench.add(1, lane)
    whole, tries = getattr(office.bench.outbox, where), []

    def broken(lane: str, what: Any) -> Any:
        if lane == "normal":
            tries.append(what)
            raise KeyError("torn")
        return whole(lane, what)

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(office.bench.outbox, where, broken)
        async with office.at_work():
            await until(lambda: len(tries) > 2, "tries")
            assert set(office.sent) == {("control", 1), ("bulk", 1)}
            assert "postman normal: KeyError('torn')" in (office.postman.problem or "")
            said = [record for record in caplog.records if record.getMessage() == "letters.unexpected"]
            assert len(said) == 1
            assert said[0].exc_info is not None
            assert office.bench.outbox.summary().dropped == 0
            assert office.bench.outbox.lanes()["normal"] == (2, 0)
            patch.undo()
            await until(lambda: ("normal", 2) in office.sent, "the letters of the lane")
            assert [sequence for lane, sequence in office.sent if lane == "normal"] == [1, 2]
            await until(lambda: office.postman.problem is None, "no problem any more")


async def test_what_nobody_expected_beside_the_lanes_is_tried_again(office: Office) -> None:
    office.bench.add(1)

    def broken() -> Grant:
        raise RuntimeError("probe")

    office.granted = broken
    async with office.at_work():
        await until(lambda: "postman all: RuntimeError('probe')" in (office.postman.problem or ""), "the problem")
        assert office.sent == []
        office.granted = Grant
        await until(lambda: office.sent == [("normal", 1)], "the letter")
        await until(lambda: office.postman.problem is None, "no problem any more")


def fail(*_: object) -> None:
    raise OutboxError("read in outbox.db: the disk fails", reason="disk_failed")


async def test_a_disk_that_fails_is_said_as_before(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.bench.add(1)

    with monkeypatch.context() as patch:
        patch.setattr(office.bench.outbox, "load", fail)
        async with office.at_work():
            await until(lambda: office.postman.problem == "read in outbox.db: the disk fails", "the problem")


async def test_a_kind_of_another_version_is_given_up_and_the_others_go(office: Office) -> None:
    for number in range(3):
        office.bench.add(number)
    tear(office, "UPDATE letters SET kind = 'sampla' WHERE sequence = 2")
    async with office.at_work():
        await until(lambda: office.bench.outbox.summary().dropped == 1, "the loss")
        assert ("normal", 1) in office.sent


@pytest.mark.parametrize("figure", ["lanes SET issued", "lanes SET mark", "released SET upto"])
async def test_a_row_that_is_torn_while_it_runs_is_mended(office: Office, figure: str) -> None:
    for number in range(3):
        office.bench.add(number)
    office.bench.outbox.load("normal", Run(1, 1))
    tear(office, f"UPDATE {figure} = 'torn'")
    async with office.at_work():
        await until(lambda: ("normal", 3) in office.sent, "all letters")
        assert office.sent[-3:] == [("normal", 1), ("normal", 2), ("normal", 3)]


def test_what_fails_again_and_again_is_tried_later_and_later() -> None:
    part, now, pauses = Trouble("postman bulk"), 0.0, []
    for _ in range(12):
        part.failed(KeyError("torn"), now)
        pauses.append(part.until - now)
        now = part.until
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (FIRST_AGAIN_S, MAX_AGAIN_S)
    part.passed()
    assert (part.problem, part.until) == (None, 0.0)
    part.failed(KeyError("torn"), now)
    assert part.until == now + FIRST_AGAIN_S


def tear(office: Office, change: str) -> None:
    with office.bench.outbox.database.write("change a row") as connection:
        connection.execute(change)


def test_what_a_failing_disk_kept_from_the_link_does_not_count_as_sent(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.bench.add(1)
    office.postman.begin({})
    with monkeypatch.context() as broken:
        broken.setattr(office.bench.outbox, "load", fail)
        office.postman._try()
        assert office.sent == []
        assert office.postman.problem
    office.postman._try()
    assert office.sent == [("normal", 1)]
