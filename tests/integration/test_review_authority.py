"""Stolen credentials of a service on the real bus: letters of other services do not vanish."""

from __future__ import annotations

import asyncio
import json

import pytest
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from causeway.audit.collect import read_stream
from services.kit.bus import Bus, connect
from services.kit.streams import ensure_owned
from tests.support.platform import LivePlatform

WAIT_S = 0.5
LETTERS = 3
DURABLE = "ota-report"


async def positions(courier: Bus) -> tuple[int, int]:
    info = await courier.js.consumer_info("IN", DURABLE)
    assert info.delivered is not None
    assert info.ack_floor is not None
    return info.delivered.stream_seq, info.ack_floor.stream_seq


async def ask(thief: Bus, subject: str, body: bytes) -> bytes | None:
    try:
        return (await thief.nc.request(subject, body, timeout=WAIT_S)).data
    except (NatsError, TimeoutError):
        return None


@pytest.mark.parametrize("stolen", ["scheduler", "aggregator", "auditor"])
async def test_a_stolen_credential_cannot_take_the_letters_of_another_service(live: LivePlatform, stolen: str) -> None:
    buses = [await connect(live.state, live.settings, name) for name in ("courier", "ota", stolen)]
    courier, ota, thief = buses
    try:
        await ensure_owned(courier.js, "courier")
        for number in range(LETTERS):
            await courier.js.publish("cw.in.report.home.cam-1", b"%d" % number)
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, deliver_policy=DeliverPolicy.ALL)
        victim = await ota.js.pull_subscribe("cw.in.report.>", durable=DURABLE, stream="IN", config=config)

        pull = json.dumps({"batch": 10, "no_wait": True}).encode()
        assert await ask(thief, f"$JS.API.CONSUMER.MSG.NEXT.IN.{DURABLE}", pull) is None
        await thief.nc.publish(f"$JS.ACK.IN.{DURABLE}.1.1.1.0.0", b"+ACK")
        rewritten = {"name": DURABLE, "durable_name": DURABLE, "filter_subject": "cw.in.enrol.>", "ack_policy": "none"}
        body = json.dumps({"stream_name": "IN", "config": rewritten}).encode()
        for subject in (
            f"$JS.API.CONSUMER.CREATE.IN.{DURABLE}",
            f"$JS.API.CONSUMER.CREATE.IN.{DURABLE}.cw.in.enrol.>",
            f"$JS.API.CONSUMER.DURABLE.CREATE.IN.{DURABLE}",
            f"$JS.API.CONSUMER.DELETE.IN.{DURABLE}",
            # The older form takes no name; one in its body must not count.
            "$JS.API.CONSUMER.CREATE.IN",
            "$JS.API.CONSUMER.CREATE.IN.other",
        ):
            answer = await ask(thief, subject, body)
            assert answer is None or "error" in json.loads(answer), subject

        assert await positions(courier) == (0, 0)
        letters = await victim.fetch(LETTERS, timeout=5)
        assert [letter.data for letter in letters] == [b"0", b"1", b"2"]
    finally:
        for bus in buses:
            await bus.close()


async def test_the_auditor_still_reads_every_letter(live: LivePlatform) -> None:
    courier = await connect(live.state, live.settings, "courier")
    auditor = await connect(live.state, live.settings, "auditor")
    try:
        await ensure_owned(courier.js, "courier")
        await courier.js.publish("cw.in.report.home.cam-1", b"letter")
        async with asyncio.timeout(10):
            found = [raw async for _, raw in read_stream(auditor.js, "IN")]
        assert found == [b"letter"]
    finally:
        await courier.close()
        await auditor.close()
