from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from ulid import ULID

from schemas.courier import Clock, Hello
from schemas.events import Message
from schemas.letters import write_state
from schemas.registry import Gone, Heartbeat, OutboxState, Welcome
from schemas.topics import Channel, Topic
from services.kit.errors import UnreachableError
from services.kit.records import RegistryKeys
from tests.support.platform import LivePlatform, until
from tests.support.registry import Link, Thing, World


class Talker:
    """A device that says hello and sends heartbeats over real MQTT."""

    def __init__(self, live: LivePlatform, thing: Thing, welcome: Welcome) -> None:
        self.thing = thing
        self.session = str(ULID())
        will = (self.topic("gone"), self.message("gone", Gone(session=self.session)))
        self.link = Link(live, welcome.jwt or "", welcome.client_id or "", will=will)
        assert self.link.accepted()
        clock = Clock(synchronised=True)
        hello = Hello(session=self.session, epoch=thing.epoch, sent={}, marks={}, agent="test", clock=clock)
        self.say("hello", hello)

    def beat(self, **readings: Any) -> None:
        self.say("heartbeat", Heartbeat(session=self.session, uptime_s=1.0, **readings))

    def say(self, kind: str, data: Message) -> None:
        self.link.say(self.topic(kind), self.message(kind, data))

    def topic(self, kind: str) -> str:
        return Topic(self.thing.address, Channel.STATE, kind).mqtt

    def message(self, kind: str, data: Message) -> bytes:
        return write_state(kind, data, event_id=str(ULID()), address=self.thing.address, time=datetime.now(UTC))


async def shown_online(world: World, thing: Thing, online: bool) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        view: dict[str, Any] = await world.show(thing)
        return view if view["online"] == online else None

    return await until(look, f"{thing.address} to be {'online' if online else 'offline'}")


async def stored_online(world: World, thing: Thing, online: bool) -> None:
    """As the other services see it."""
    kv = await (await world.bus("auditor")).bucket("devices")
    keys = RegistryKeys(world.live.state)

    async def look() -> bool:
        entry = await kv.get(f"home.{thing.address.device}")
        return keys.open_record(entry.value or b"", thing.address).online == online

    await until(look, f"the record of {thing.address} to say online={online}")


async def test_a_device_is_online_from_its_first_word_to_its_last_will(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        talker = Talker(live, thing, await world.join(thing))
        assert (await shown_online(world, thing, online=True))["heartbeat"] is None
        talker.beat(load=0.25, outbox=OutboxState(letters=4, bytes=10, dropped=0))

        async def beaten() -> dict[str, Any] | None:
            return (await world.show(thing))["heartbeat"]

        assert (await until(beaten, "the heartbeat"))["load"] == 0.25
        await stored_online(world, thing, online=True)

        async def counted() -> bool:
            metrics = live.metrics("registry")
            return "devices_connected_total 1.0" in metrics and "causeway_device_outbox_letters 4.0" in metrics

        await until(counted, "the metrics")
        metrics = live.metrics("registry")
        assert 'causeway_heartbeats_total{outcome="accepted"} 1.0' in metrics
        assert 'causeway_devices{standing="enrolled"} 1.0' in metrics
        assert "cam-1" not in metrics

        talker.link.vanish()
        view = await shown_online(world, thing, online=False)
        assert view["last_seen"] is not None
        await stored_online(world, thing, online=False)


async def test_silence_is_offline(live: LivePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSEWAY_REGISTRY_SILENCE_S", "0.6")
    async with World(live) as world:
        thing = Thing("cam-1")
        talker = Talker(live, thing, await world.join(thing))
        await stored_online(world, thing, online=True)
        await stored_online(world, thing, online=False)
        talker.beat()
        await stored_online(world, thing, online=True)
        talker.link.close()


async def test_presence_outlives_the_registry_and_the_bus(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        welcome = await world.join(thing)
        talker = Talker(live, thing, welcome)
        talker.beat(load=0.75)
        await stored_online(world, thing, online=True)
        live.kill("registry")
        talker.beat(load=0.5)
        await asyncio.to_thread(live.start_service, "registry")
        view = await shown_online(world, thing, online=True)
        assert view["heartbeat"]["load"] == 0.5  # said while no registry ran

        # TELEMETRY is in memory: gone with the server, and made again.
        live.kill("nats-server")
        live.start_bus()
        talker.link.vanish()
        again = Talker(live, thing, welcome)

        async def newest() -> bool:
            again.beat(load=0.125)  # until the stream is there again nobody keeps a heartbeat
            try:
                view = await world.show(thing, timeout_s=1.0)
            except UnreachableError:  # one of the two is still reconnecting
                return False
            return bool(view["heartbeat"]["load"] == 0.125)

        await until(newest, "the heartbeat after the restart of the bus")
        again.link.close()


async def test_what_is_not_a_heartbeat_is_kept_with_its_reason(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        talker = Talker(live, thing, await world.join(thing))
        forged = talker.message("heartbeat", Heartbeat(session=talker.session, uptime_s=1.0)).replace(
            b"cam-1", b"cam-2"
        )
        for payload in (b"{}", forged):
            talker.link.say(talker.topic("heartbeat"), payload)
        for _ in range(200):
            talker.link.say(talker.topic("heartbeat"), b"noise")
        talker.beat(load=1.0)
        rejects = await (await world.bus("auditor")).js.pull_subscribe("cw.rejects.registry", stream="REJECTS")
        kept = [(await rejects.fetch(1, timeout=10))[0] for _ in range(2)]
        assert [message.headers["Causeway-Reason"] for message in kept] == ["malformed", "wrong_source"]
        assert kept[1].data == forged

        async def through() -> bool:
            return (await world.show(thing))["heartbeat"] is not None

        await until(through, "the good heartbeat behind the noise")

        async def counted() -> bool:
            metrics = live.metrics("registry")
            refused = 'causeway_rejected_total{kind="heartbeat",reason="malformed",service="registry"} 201.0'
            return 'causeway_heartbeats_total{outcome="bad"} 202.0' in metrics and refused in metrics

        await until(counted, "the counters")
        state = (await (await world.bus("auditor")).js.stream_info("REJECTS")).state
        assert state.messages < 100  # bounded, the rest is counted
        talker.link.close()
