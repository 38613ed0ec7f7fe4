from __future__ import annotations

import asyncio

import pytest

from edge_runtime.carriers import keeping
from edge_runtime.carriers.keeping import AGAIN_S, keep


async def test_a_work_that_fails_unexpectedly_is_told_of_and_begins_anew_ever_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    problems: dict[str, str] = {}
    pauses: list[float] = []
    seen: list[dict[str, str]] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        seen.append(dict(problems))

    monkeypatch.setattr(keeping.asyncio, "sleep", pause)
    turns = iter(range(20))

    async def work() -> None:
        assert problems == {}, "what is being tried again is no problem now"
        if next(turns) < 10:
            "\ud800".encode()

    async with asyncio.TaskGroup() as group:
        group.create_task(keep("folder", work, problems))
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]
    assert all("UnicodeEncodeError" in each["folder"] for each in seen)
    assert problems == {}
    told = [record for record in caplog.records if record.message == "carriers.unexpected"]
    assert len(told) == 10
    assert all(record.exc_info for record in told), "with its stack"


@pytest.mark.parametrize("cleans_up", [True, False])
async def test_cancelling_a_work_ends_it(*, cleans_up: bool) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            if not cleans_up:
                raise OSError("nothing can be cleaned up")

    task = asyncio.create_task(keep("folder", work, {}))
    await begun.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=AGAIN_S / 2)
    assert task.cancelled(), "it does not begin anew"
