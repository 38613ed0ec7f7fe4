"""What fails at every turn is said once: the log may stand on the very disk that is full."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import cast

import pytest

from edge_runtime import chores
from edge_runtime.chores import Chores, House
from edge_runtime.errors import OutboxError


async def test_a_chore_that_goes_on_failing_is_logged_once_and_again_when_the_reason_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    reasons = ["full"] * 50 + ["broken"] * 50 + [None] + ["full"] * 50
    problems: dict[str, str] = {}
    house = SimpleNamespace(alarms=SimpleNamespace(problems=problems))
    done, turns, seen = asyncio.Event(), iter(reasons), []

    def work() -> None:
        seen.append(dict(problems))
        reason = next(turns, "over")
        if reason == "over":
            done.set()
        if reason is not None:
            raise OutboxError(reason)

    turning = asyncio.create_task(Chores(cast("House", house))._every(0.0, work))
    async with asyncio.timeout(10):
        await done.wait()
    turning.cancel()
    await asyncio.gather(turning, return_exceptions=True)
    said = [record.fields["message"] for record in caplog.records if record.getMessage() == "periodic.failed"]
    assert said[:3] == ["full", "broken", "full"]
    assert len(said) <= 4
    assert {"work": "full"} in seen
    assert {} in seen[1:], "a turn that went well clears it"


async def test_a_chore_that_fails_unexpectedly_ends_nothing_and_is_tried_later_and_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems: dict[str, str] = {}
    house = SimpleNamespace(alarms=SimpleNamespace(problems=problems))
    turns = [*[ValueError("torn row")] * 8, None, KeyError("losses"), None]
    pauses: list[float] = []

    async def pause(interval_s: float, _: object) -> None:
        pauses.append(interval_s)
        if len(pauses) == len(turns):
            raise asyncio.CancelledError

    def work() -> None:
        error = turns[len(pauses)]
        assert len(pauses) == 0 or ("work" in problems) == (turns[len(pauses) - 1] is not None)
        if error is not None:
            raise error

    monkeypatch.setattr(chores, "_pause", pause)
    with pytest.raises(asyncio.CancelledError):
        await Chores(cast("House", house))._every(2.0, work)
    assert pauses == [4, 8, 16, 32, 64, 128, 256, chores.MAX_AGAIN_S, 2, 4, 2]
    said = [record for record in caplog.records if record.getMessage() == "periodic.unexpected"]
    assert [str(record.exc_info[1]) for record in said] == ["torn row", "'losses'"]


def test_losses_that_cannot_be_told_do_not_end_the_conversation_that_asked_for_it() -> None:
    def report_losses() -> list[str]:
        raise ValueError("torn row")

    problems: dict[str, str] = {}
    house = SimpleNamespace(
        alarms=SimpleNamespace(problems=problems), outbox=SimpleNamespace(report_losses=report_losses)
    )
    Chores(cast("House", house)).tell_losses()
    assert problems == {"_report_losses": "ValueError('torn row'); the log says where; it is tried again"}


async def test_a_heartbeat_that_fails_unexpectedly_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    beats: list[int] = []
    done = asyncio.Event()

    def heartbeat() -> None:
        beats.append(1)
        if len(beats) == 3:
            done.set()
        raise TypeError("torn")

    house = SimpleNamespace(
        alarms=SimpleNamespace(problems={}),
        conduct=SimpleNamespace(decisions=lambda: SimpleNamespace(heartbeat_s=0.001)),
        vitals=SimpleNamespace(heartbeat=heartbeat),
    )
    beating = asyncio.create_task(Chores(cast("House", house))._beat())
    async with asyncio.timeout(10):
        await done.wait()
    assert not beating.done()
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    assert [record.getMessage() for record in caplog.records].count("heartbeat.unexpected") == 1
