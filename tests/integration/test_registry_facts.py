"""What happened to a device is announced, also if the registry dies between writing it down and telling it."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from schemas.envelope import parse
from schemas.registry import EventReport
from services.kit.api.registry import DeviceRequest, QuarantineRequest
from services.kit.devices import device_key
from services.kit.puller import scan
from services.kit.records import RECORD_TYPE
from services.kit.streams import EVENTS
from tests.support.dying_registry import DEAD, start_dying_registry
from tests.support.platform import LivePlatform, until
from tests.support.registry import Link, Thing, World


async def enrol(world: World, thing: Thing) -> None:
    await world.join(thing)


async def quarantine(world: World, thing: Thing) -> None:
    letters = []
    for _ in range(2):
        thing.sequence = 0
        letters.append(thing.letter(world.platform, "event", EventReport(name="said", message="twice")))
    request = QuarantineRequest(
        fleet=thing.address.fleet,
        device=thing.address.device,
        proof="two_letters",
        letters=[base64.b64encode(raw).decode() for raw in letters],
        epochs=[thing.epoch],
    )
    await world.ask("quarantine", request)


async def release(world: World, thing: Thing) -> None:
    await world.ask("release", DeviceRequest(fleet=thing.address.fleet, device=thing.address.device))


async def revoke(world: World, thing: Thing) -> None:
    await world.ask("revoke", DeviceRequest(fleet=thing.address.fleet, device=thing.address.device))


async def announced(world: World, event: str) -> list[dict[str, Any]]:
    messages = [message async for message in scan(await world.bus("registry"), "EVENTS")]
    return [json.loads(message.data) for message in messages if message.subject.endswith(f".{event}")]


async def settled(world: World, thing: Thing) -> bool:
    entry = await (await (await world.bus("registry")).bucket("devices")).get(device_key(thing.address))
    return json.loads(parse(entry.value or b"", RECORD_TYPE).body)["owed"] is None


async def die(world: World) -> None:
    # It stays the platform's to end until it has ended.
    assert await asyncio.to_thread(world.live.processes["registry"].wait, 10) == DEAD
    del world.live.processes["registry"]


@pytest.mark.parametrize(
    ("event", "steps", "fatal"),
    [
        ("device-quarantined", [enrol], quarantine),
        ("device-released", [enrol, quarantine], release),
        ("device-revoked", [enrol, quarantine], revoke),
    ],
)
async def test_what_a_registry_wrote_and_did_not_tell_the_next_one_tells(
    live: LivePlatform, event: str, steps: list[Any], fatal: Any
) -> None:
    thing = Thing("cam-1")
    async with World(live) as world:
        live.kill("registry")
        await asyncio.to_thread(start_dying_registry, live, event)
        for step in steps:
            await step(world, thing)
        asked = asyncio.create_task(fatal(world, thing))
        await die(world)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert await announced(world, event) == []

        await asyncio.to_thread(live.start_service, "registry")
        [fact] = await until(lambda: announced(world, event), f"event {event}")
        assert (fact["fleet"], fact["device"]) == (thing.address.fleet, thing.address.device)
        if event == "device-quarantined":
            assert "two devices use this key" in fact["quarantine"]["message"]

        await until(lambda: settled(world, thing), "the record to owe nothing")


async def test_a_device_is_cut_off_also_while_nothing_can_be_told(live: LivePlatform) -> None:
    thing = Thing("cam-1")
    async with World(live) as world:
        welcome = await world.join(thing)
        js = (await world.bus("registry")).js
        config = EVENTS.config()
        config.max_msg_size = 1
        await js.update_stream(config)
        await quarantine(world, thing)
        assert not await settled(world, thing)
        link = await asyncio.to_thread(Link, live, welcome.jwt or "", welcome.client_id or "")
        try:
            assert await asyncio.to_thread(link.accepted)
            await revoke(world, thing)
            await asyncio.to_thread(link.lost.get, timeout=5)
        finally:
            await asyncio.to_thread(link.close)
        assert (await world.show(thing))["standing"] == "revoked"
        assert not await settled(world, thing)

        await js.update_stream(EVENTS.config())
        await until(lambda: announced(world, "device-revoked"), "the event")
        await until(lambda: settled(world, thing), "the record to owe nothing")


async def test_an_enrolment_that_was_written_and_not_told_is_told_when_its_letter_comes_again(
    live: LivePlatform,
) -> None:
    thing = Thing("cam-1")
    async with World(live) as world:
        letter = thing.letter(world.platform, "enrol", thing.enrol(await world.token(thing)))
        live.kill("registry")
        await asyncio.to_thread(start_dying_registry, live, "device-enrolled")
        await world.put_in(thing, "enrol", letter)
        await die(world)
        assert await announced(world, "device-enrolled") == []
        await asyncio.to_thread(live.start_service, "registry")
        await world.put_in(thing, "enrol", letter)
        [fact] = await until(lambda: announced(world, "device-enrolled"), "the event")
        assert fact["device"] == "cam-1"
