"""Stolen credentials of a service on the real bus: letters of others do not vanish, no device's key is replaced."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError
from nats.js.kv import KeyValue
from ulid import ULID

from causeway.audit.collect import read_stream
from schemas.envelope import Signer
from schemas.letters import Place, write_up
from schemas.ota import Report
from services.kit.api.registry import DeviceRequest, ListRequest
from services.kit.bus import Bus, connect
from services.kit.devices import DeviceBook, device_key
from services.kit.intake import Arrival, Intake
from services.kit.records import RegistryKeys, seal_record
from services.kit.rejects import REJECTED
from services.kit.streams import ensure_owned
from services.registry.tokens import TokenRecord
from tests.support.platform import LivePlatform, until
from tests.support.registry import Thing, World

WAIT_S = 0.5
LETTERS = 3
DURABLE = "ota-report"
REFUSED = ("unknown_key", "wrong_platform", "expired", "wrong_source")


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
            found = [raw async for _, raw in read_stream(auditor, "IN")]
        assert found == [b"letter"]
    finally:
        await courier.close()
        await auditor.close()


async def echo(courier: Bus, value: bytes, subject: str) -> None:
    """Have JetStream itself send `value` to a subject, with nothing but the courier's permissions."""
    stored = await courier.js.publish("cw.in.update.home.none", value)
    body = json.dumps({"seq": stored.seq}).encode()
    await courier.nc.publish("$JS.API.DIRECT.GET.IN", body, reply=subject)
    await courier.nc.flush()


async def overwrite(courier: Bus, thing: Thing, value: bytes) -> None:
    """Write into bucket devices without the permission to."""
    await echo(courier, value, f"$KV.devices.{device_key(thing.address)}")


async def holds(bucket: KeyValue, thing: Thing, value: bytes) -> None:
    async def look() -> bool:
        return (await bucket.get(device_key(thing.address))).value == value

    await until(look, "the value in the bucket")


def forged_value(book: DeviceBook, thing: Thing, thief: Thing) -> bytes:
    """The device's own record with the thief's key in it, signed by the thief."""
    genuine = book.get(thing.address)
    assert genuine is not None
    changed = genuine.model_copy(update={"public_key": thief.public_key, "serial": genuine.serial + 1})
    return seal_record(changed, thief.signer)


def report(
    live: LivePlatform, thing: Thing, signer: Signer, *, platform: str | None = None, life_s: float = 3_600
) -> bytes:
    thing.sequence += 1
    now = datetime.now(UTC)
    return write_up(
        "report",
        Report(rollout=str(ULID()), model="digits", step="confirm", outcome="ok", revision=1, took_s=1.0),
        Place(thing.epoch, "normal", thing.sequence, 1),
        letter_id=str(ULID()),
        address=thing.address,
        platform=platform or live.settings.platform,
        time=now,
        expires=now + timedelta(seconds=life_s),
        signer=signer,
    )


async def test_a_stolen_courier_cannot_replace_a_devices_key(live: LivePlatform) -> None:
    async with World(live) as world:
        thing, thief = Thing("cam-1"), Thing("cam-1")
        await world.join(thing)
        courier, ota = await world.bus("courier"), await world.bus("ota")
        bucket = await (await world.bus("auditor")).bucket("devices")
        keys = RegistryKeys(live.state)
        book = DeviceBook(keys.open_record)
        taken: list[Arrival] = []

        async def take(arrival: Arrival) -> None:
            taken.append(arrival)

        await book.follow(ota)
        intake = asyncio.create_task(Intake(ota, "ota", live.settings.platform, "report", take, book).run())
        try:
            forged, seen = forged_value(book, thing, thief), []
            watcher = await bucket.watch(device_key(thing.address))
            await overwrite(courier, thing, forged)
            async with asyncio.timeout(20):
                async for entry in watcher:
                    # JetStream did write it; the registry then wrote its own again.
                    seen += [entry.value] if entry else []
                    if len(seen) > 1 and seen[-1] != forged:
                        break
            assert seen.count(forged) == 1
            assert keys.open_record(seen[-1] or b"", thing.address).public_key == thing.public_key

            refused = {reason: REJECTED.labels("ota", "report", reason)._value.get() for reason in REFUSED}
            # A stolen courier may also store what the device signed for elsewhere, or for another day.
            neighbour = Thing("cam-2")
            for letter in (
                report(live, thing, thief.signer),
                report(live, thing, thing.signer, platform=str(ULID())),
                report(live, thing, thing.signer, life_s=-1),
                report(live, neighbour, thing.signer),
            ):
                await world.put_in(thing, "report", letter)
            genuine = report(live, thing, thing.signer)
            await world.put_in(thing, "report", genuine)

            async def arrived() -> bool:
                return bool(taken)

            await until(arrived, "the genuine report")
            assert [arrival.envelope for arrival in taken] == [genuine]
            now = {reason: REJECTED.labels("ota", "report", reason)._value.get() for reason in REFUSED}
            assert {reason: now[reason] - refused[reason] for reason in REFUSED} == dict.fromkeys(REFUSED, 1.0)
            known = book.get(thing.address)
            assert known is not None
            assert known.public_key == thing.public_key
        finally:
            intake.cancel()
            book.close()
            await asyncio.gather(intake, return_exceptions=True)


async def test_a_stolen_courier_cannot_ask_through_jetstream(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        await world.join(thing)
        courier = await world.bus("courier")
        request = DeviceRequest(fleet=thing.address.fleet, device=thing.address.device).model_dump_json().encode()
        await echo(courier, request, "cw.rpc.registry.revoke")

        async def counted() -> bool:
            return 'causeway_rpc_stray_total{service="registry",verb="revoke"} 1.0' in live.metrics("registry")

        await until(counted, "the stray request to be counted")
        assert (await world.show(thing))["standing"] == "enrolled"


async def test_a_stolen_courier_neither_reads_nor_makes_tokens(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        token = await world.token(thing)
        courier, registry = await world.bus("courier"), await world.bus("registry")
        bucket = await registry.bucket("tokens")
        value = (await bucket.get(token.token)).value or b""
        assert token.secret.encode() not in value
        forged = TokenRecord(
            token=str(ULID()), fleet="home", device="cam-1", secret=token.secret, made_at=0, expires=2**40
        )
        for stolen in (value, forged.model_dump_json().encode()):
            await echo(courier, stolen, f"$KV.tokens.{forged.token}")

            async def written(stolen: bytes = stolen) -> bool:
                try:
                    return (await bucket.get(forged.token)).value == stolen
                except NotFoundError:
                    return False

            await until(written, "the forged token")
            refused = await world.enrolled(thing, token.model_copy(update={"token": forged.token}))
            assert refused.reason == "token_unknown"
        assert not (await world.enrolled(thing, token)).refused


async def test_a_registry_that_starts_on_a_forged_record_believes_and_rewrites_nothing(live: LivePlatform) -> None:
    async with World(live) as world:
        thing, thief, other = Thing("cam-1"), Thing("cam-1"), Thing("cam-2")
        await world.join(thing)
        await world.join(other)
        courier, bucket = await world.bus("courier"), await (await world.bus("auditor")).bucket("devices")
        book = DeviceBook(RegistryKeys(live.state).open_record)
        await book.follow(await world.bus("ota"))
        try:
            await asyncio.to_thread(live.kill, "registry")
            forged = forged_value(book, thing, thief)
            await overwrite(courier, thing, forged)
            await holds(bucket, thing, forged)
            await asyncio.to_thread(live.start_service, "registry")
            assert [view["device"] for view in await world.ask("list", ListRequest())] == ["cam-2"]
            assert 'causeway_device_records_refused_total{reason="unknown_key"} 1.0' in live.metrics("registry")
            await holds(bucket, thing, forged)

            # The operator's token lets the device in again, over what stands there, and running readers follow.
            before = book.get(thing.address)
            assert before is not None
            await world.join(thing)

            async def back() -> bool:
                record = book.get(thing.address)
                assert record is not None
                assert record.public_key == thing.public_key
                return record.serial > before.serial

            await until(back, "the new record")
        finally:
            book.close()
