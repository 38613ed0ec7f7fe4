"""The chain of IN and of the saved marks, between two couriers that both believe to be active."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from schemas.ids import Address
from schemas.topics import fence_subject, in_subject
from services.courier.up.chain import Chain, Entry
from services.courier.up.marks import SavedPoint
from services.courier.up.marks_store import MarksStore
from services.courier.up.ordering import LaneKey
from services.kit.bus import Bus, connect, wait_for
from services.kit.pipeline import Pipeline, PipelineError, Request, read_answer
from services.kit.streams import IN, ensure_owned
from tests.support.platform import LivePlatform

ADDRESS = Address("home", "cam-1")
LANE = LaneKey("home", "cam-1", "01J00000000000000000000000", "normal")


def entries(*sequences: int) -> list[Entry]:
    return [Entry(in_subject("event", ADDRESS), LANE.message_id(n), b"{}") for n in sequences]


async def writer(bus: Bus) -> tuple[Chain, MarksStore]:
    pipeline = Pipeline(bus, 5.0)
    await pipeline.open()
    return Chain(pipeline, fence_subject()), MarksStore(bus, pipeline)


@pytest.fixture
async def bus(live: LivePlatform) -> AsyncIterator[Bus]:
    """A courier's connection."""
    bus = await connect(live.state, live.settings, "courier")
    yield bus
    await bus.close()


async def test_a_fence_stops_the_letters_and_the_marks_of_a_predecessor(live: LivePlatform) -> None:
    first_bus = await connect(live.state, live.settings, "courier")
    second_bus = await connect(live.state, live.settings, "courier")
    try:
        await ensure_owned(first_bus.js, "courier")
        (old, old_store), (new, new_store) = await writer(first_bus), await writer(second_bus)
        old_marks, _ = await old_store.restore(old)
        for n, at in zip((1, 2), await old.append(entries(1, 2)), strict=True):
            old_marks.stored(LANE, n, at)

        new_marks, _ = await new_store.restore(new)
        assert new_marks.flat == {LANE: 2}
        with pytest.raises(PipelineError) as refused:
            await old.append(entries(3, 4, 5))
        assert refused.value.err_code in {10070, 10071}
        stale = SavedPoint(sequence=old.sequence, message_id=old.message_id)
        with pytest.raises(PipelineError):
            await old_store.save(old_marks.take_changed({}), stale)
        assert await new.append(entries(3))

        # The predecessor, come back: it knows everything, and now breaks the other's chain.
        again, _ = await old_store.restore(old)
        assert again.flat == {LANE: 3}
        with pytest.raises(PipelineError):
            await new.append(entries(4))
    finally:
        await first_bus.close()
        await second_bus.close()


async def test_saved_marks_and_sessions_are_found_again_without_reading_in_from_the_start(bus: Bus) -> None:
    await ensure_owned(bus.js, "courier")
    chain, store = await writer(bus)
    marks, _ = await store.restore(chain)
    for n, at in zip((1, 2), await chain.append(entries(1, 2)), strict=True):
        marks.stored(LANE, n, at)
    session = "01J0000000000000000000000A"
    await store.save(
        marks.take_changed({ADDRESS: session}), SavedPoint(sequence=chain.sequence, message_id=chain.message_id)
    )
    await chain.append(entries(3))
    # Marks outlive IN's letters.
    await bus.js.purge_stream("IN", seq=3)
    again, sessions = await store.restore(chain)
    assert again.flat == {LANE: 3}
    assert sessions == {ADDRESS: session}


@pytest.mark.parametrize("key", ["home.cam-1", "_point"])
async def test_marks_that_a_foreign_value_replaced_are_read_from_in_again(live: LivePlatform, key: str) -> None:
    """JetStream writes there for whoever may read a stream, with a letter or nothing as the value."""
    bus = await connect(live.state, live.settings, "courier")
    try:
        await ensure_owned(bus.js, "courier")
        chain, store = await writer(bus)
        marks, _ = await store.restore(chain)
        for n, at in zip((1, 2), await chain.append(entries(1, 2)), strict=True):
            marks.stored(LANE, n, at)
        await store.save(marks.take_changed({}), SavedPoint(sequence=chain.sequence, message_id=chain.message_id))
        for place in (key, "no-device", "home.cam-1.x"):
            for value in (b"", b'{"payloadType":"x","payload":"","signatures":[]}'):
                await bus.js.publish(f"$KV.marks.{place}", value)

        marks, _ = await store.restore(chain)
        assert marks.flat == {LANE: 2}
        # It is mended by the next saving.
        changed = marks.take_changed({})
        assert ADDRESS in changed
        await store.save(changed, SavedPoint(sequence=chain.sequence, message_id=chain.message_id))
        saved, point = await store._load()
        assert (saved, point is None) == (changed, False)
    finally:
        await bus.close()


async def test_a_missing_stream_is_an_error_and_no_silence(bus: Bus) -> None:
    chain, _ = await writer(bus)
    with pytest.raises(PipelineError, match="does not answer"):
        await chain.fence()


async def test_what_is_asked_without_a_connection_is_not_sent_when_it_is_back(live: LivePlatform, bus: Bus) -> None:
    await ensure_owned(bus.js, "courier")
    pipeline, lost = Pipeline(bus, 5.0), asyncio.Event()
    await pipeline.open()
    bus.on_disconnect(lost.set)
    live.kill("nats-server")
    async with asyncio.timeout(5):
        await lost.wait()
    with pytest.raises(PipelineError, match=r"2 of 2 .* before the connection was lost"):
        await pipeline.ask([Request(in_subject("event", ADDRESS), b"{}")] * 2)
    live.start_bus()
    await wait_for(lambda: bus.js.stream_info(IN.name), "IN")
    [answer] = await pipeline.ask([Request(in_subject("event", ADDRESS), b"{}")])
    assert read_answer(answer)["seq"] == 1


async def test_what_a_killed_server_was_asked_is_not_waited_for(live: LivePlatform, bus: Bus) -> None:
    await ensure_owned(bus.js, "courier")
    chain, _ = await writer(bus)
    await chain.fence()
    live.kill("nats-server")
    with pytest.raises(PipelineError, match="before the connection was lost"):
        # Half of what the pipeline itself would wait.
        async with asyncio.timeout(2.5):
            await chain.append(entries(1, 2))
    live.start_bus()
    await wait_for(lambda: bus.js.stream_info(IN.name), "IN")
    await chain.fence()
    assert await chain.append(entries(3))
