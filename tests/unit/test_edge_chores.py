"""What fails at every turn is said once: the log may stand on the very disk that is full."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import cast

import pytest

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

    chores = asyncio.create_task(Chores(cast("House", house))._every(0.0, work))
    async with asyncio.timeout(10):
        await done.wait()
    chores.cancel()
    await asyncio.gather(chores, return_exceptions=True)
    said = [record.fields["message"] for record in caplog.records if record.getMessage() == "periodic.failed"]
    assert said[:3] == ["full", "broken", "full"]
    assert len(said) <= 4
    assert {"work": "full"} in seen
    assert {} in seen[1:], "a turn that went well clears it"
