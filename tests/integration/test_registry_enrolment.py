from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime

import pytest
from ulid import ULID

from schemas.envelope import Verifier, parse
from schemas.registry import EventReport, Welcome
from services.kit.api.registry import DeviceRequest, ListRequest
from services.kit.credentials import decode_jwt
from services.kit.errors import NotFoundError
from services.kit.keys import read_letter_key
from services.registry.enrolment import answer_id
from tests.support.platform import LivePlatform, until
from tests.support.registry import FLOORS, Thing, World


async def test_a_token_and_a_proof_make_a_device(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        token = await world.token(thing)
        assert token.root_sha256 == "ab" * 32
        assert token.url == live.settings.bus.mqtt_url
        assert token.ca_pem == (live.state.ca / "ca.pem").read_text()

        letter_id = str(ULID())
        letter = thing.letter(world.platform, "enrol", thing.enrol(token), letter_id)
        await world.put_in(thing, "enrol", letter)
        welcome = await world.welcome(thing, letter_id)
        assert (welcome.refused, welcome.enrol_id, welcome.tuf_floors) == (False, letter_id, FLOORS)
        registry = read_letter_key(live.state.service_key("registry")).signer
        raw = await world.mail(thing, answer_id(thing.address, letter_id))
        parse(raw).verify({registry.keyid: Verifier(registry.public_key)})

        # The same letter again has one effect: the same credentials once more.
        before = (await (await world.bus("courier")).js.stream_info("OUT")).state.last_seq
        await world.put_in(thing, "enrol", letter)

        async def repeated() -> bool:
            return (await (await world.bus("courier")).js.stream_info("OUT")).state.last_seq > before

        await until(repeated, "the repeated welcome")
        again = await world.welcome(thing, letter_id)
        assert (again.jwt, again.client_id, again.expires) == (welcome.jwt, welcome.client_id, welcome.expires)

        view = await world.show(thing)
        assert (view["standing"], view["online"], view["capabilities"]["arch"]) == ("enrolled", False, "x86_64")
        assert [v["device"] for v in await world.ask("list", ListRequest(fleet="home"))] == ["cam-1"]
        assert await world.ask("list", ListRequest(fleet="other")) == []

        # Renewal: signed by the present key, no token, new credentials.
        renewed = await world.enrolled(thing)
        assert not renewed.refused
        assert renewed.client_id != welcome.client_id
        assert decode_jwt(renewed.jwt or "")["sub"] == decode_jwt(welcome.jwt or "")["sub"]


async def test_each_refusal_is_answered_with_its_reason(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        token = await world.token(thing)

        def reason(welcome: Welcome) -> str | None:
            assert welcome.refused
            assert welcome.jwt is None
            assert welcome.message
            return welcome.reason

        assert reason(await world.enrolled(thing, token, token=str(ULID()))) == "token_unknown"
        assert reason(await world.enrolled(thing)) == "token_unknown"
        assert reason(await world.enrolled(thing, token, proof="00" * 32)) == "bad_proof"
        assert reason(await world.enrolled(Thing("cam-2"), token)) == "token_unknown"
        short = await world.token(thing, ttl_s=0.001)
        assert reason(await world.enrolled(thing, short)) == "token_expired"
        # None of that spent the token.
        assert not (await world.enrolled(thing, token)).refused
        assert reason(await world.enrolled(thing, token)) == "token_used"
        stranger = Thing("cam-1")
        assert reason(await world.enrolled(stranger, await world.token(stranger))) == "already_enrolled"
        assert reason(await world.enrolled(stranger)) == "bad_proof"
        twin = Thing("cam-3")
        twin.signer, twin.public_key = thing.signer, thing.public_key
        assert reason(await world.enrolled(twin, await world.token(twin))) == "key_in_use"
        metrics = live.metrics("registry")
        assert 'causeway_enrol_answers_total{answer="token_used"} 1.0' in metrics
        assert 'causeway_enrol_answers_total{answer="welcome"} 1.0' in metrics


async def test_a_forged_enrol_letter_is_kept_in_rejects(live: LivePlatform) -> None:
    async with World(live) as world:
        thing, thief = Thing("cam-1"), Thing("cam-1")
        token = await world.token(thing)
        # Brings the device's key, but is signed by another.
        await world.put_in(thing, "enrol", thief.letter(world.platform, "enrol", thing.enrol(token)))
        js = (await world.bus("auditor")).js
        rejects = await js.pull_subscribe("cw.rejects.registry", stream="REJECTS")
        (kept,) = await rejects.fetch(1, timeout=10)
        assert kept.headers["Causeway-Reason"] == "unknown_key"
        assert (await world.ask("list", ListRequest())) == []


async def test_a_device_that_nobody_knows_is_not_found(live: LivePlatform) -> None:
    async with World(live) as world:
        for verb in ("show", "revoke"):
            with pytest.raises(NotFoundError, match="home/ghost"):
                await world.ask(verb, DeviceRequest(fleet="home", device="ghost"))


async def test_a_registry_that_starts_anew_knows_all_that_it_knew(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        spent = await world.token(thing)
        await world.enrolled(thing, spent)
        live.kill("registry")
        await asyncio.to_thread(live.start_service, "registry")
        assert (await world.show(thing))["standing"] == "enrolled"
        assert (await world.enrolled(thing, spent)).reason == "token_used"
        assert not (await world.enrolled(thing)).refused


async def test_what_a_device_reports_reaches_the_operators(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        await world.join(thing)
        report = EventReport(
            name="letter.refused",
            severity="high",
            reason="replayed",
            message="assign of an older revision",
            details={"kind": "assign"},
        )
        letter_id = str(ULID())
        letter = thing.letter(world.platform, "event", report, letter_id)
        await world.put_in(thing, "event", letter)
        await world.put_in(thing, "event", letter)
        js = (await world.bus("auditor")).js
        events = await js.pull_subscribe("cw.ev.registry.device-event", stream="EVENTS")
        (message,) = await events.fetch(1, timeout=10)
        event = json.loads(message.data)
        assert (event["device"], event["name"], event["reason"]) == ("cam-1", "letter.refused", "replayed")
        assert (event["letter"], event["details"]) == (letter_id, {"kind": "assign"})

        # A stranger's report under that name is refused, not announced.
        await world.put_in(thing, "event", Thing("cam-1").letter(world.platform, "event", report))
        rejects = await js.pull_subscribe("cw.rejects.registry", stream="REJECTS")
        (kept,) = await rejects.fetch(1, timeout=10)
        assert kept.headers["Causeway-Reason"] == "unknown_key"
        assert (await js.stream_info("EVENTS")).state.messages == 2  # enrolled, and the one report


async def test_credentials_are_what_the_protocol_says(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        token = await world.token(thing)
        welcome = await world.enrolled(thing, token)
        claims = decode_jwt(welcome.jwt or "")
        assert claims["nats"]["allowed_connection_types"] == ["MQTT"]
        assert claims["nats"]["bearer_token"] is True
        assert claims["nats"]["subs"] == 8
        assert claims["exp"] == int((welcome.expires or datetime.now(UTC)).timestamp())
        assert "nbf" not in claims
        assert claims["nats"]["pub"]["allow"] == [f"cw.1.home.cam-1.{c}.*" for c in ("letter", "parcel", "state")]
        bootstrap = decode_jwt(token.bootstrap_jwt)
        assert bootstrap["exp"] == int(token.expires.timestamp())
        assert "cw.1.home.cam-1.letter.enrol" in bootstrap["nats"]["pub"]["allow"]
        assert not [subject for subject in bootstrap["nats"]["pub"]["allow"] if "*" in subject]
        assert len(base64.b64decode(token.secret)) == 32
