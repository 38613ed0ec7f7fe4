"""What a device's or a service's credential can do on the real bus, tried by real clients that mean ill."""

from __future__ import annotations

import asyncio
import queue
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import nats
import nkeys
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError
from ulid import ULID

from causeway.platform.init import InitOptions, init_platform
from schemas.ids import Address
from schemas.topics import Channel, Topic
from services.kit.api.registry import DeviceRequest
from services.kit.bus import Bus, connect, tls_context
from services.kit.credentials import NKey, Permissions, UserClaims, creds_text, user_jwt
from services.kit.folder import StateFolder
from services.kit.permissions import auditor_permissions, operator_permissions, service_permissions
from services.kit.settings import BusSettings
from tests.support.platform import LivePlatform, eventually, until
from tests.support.registry import Link, Pass, Thing, World, admit
from tests.support.subjects import covers

BAD_CREDENTIAL = 5
REFUSED_FILTER = 0x80

CAM = Thing("cam-1")
OTHER = Thing("cam-2")


def topic(address: Address, channel: Channel, kind: str) -> str:
    return Topic(address, channel, kind).mqtt


@contextmanager
def linked(live: LivePlatform, credentials: Pass, client_id: str | None = None, **options: object) -> Iterator[Link]:
    link = Link(live, credentials.jwt, client_id or credentials.client_id, **options)  # type: ignore[arg-type]
    try:
        yield link
    finally:
        link.close()


class Ear:
    """Hears everything in the account, as nobody in a real platform may."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.heard: list[Msg] = []

    async def hear(self, message: Msg) -> None:
        self.heard.append(message)

    def subjects(self) -> set[str]:
        return {message.subject for message in self.heard}

    async def wait(self, subject: str) -> None:
        async def came() -> bool:
            return subject in self.subjects()

        await until(came, subject, timeout_s=10)


@asynccontextmanager
async def ear(live: LivePlatform) -> AsyncIterator[Ear]:
    account = NKey.load(live.state.bus_keys / "account.nk")
    user = NKey.generate(nkeys.PREFIX_BYTE_USER)
    jwt = user_jwt(account, UserClaims("ear", user.public, Permissions((">",), (">",)), issued_at=0))
    path = live.state.root / "ear.creds"
    path.write_bytes(creds_text(jwt, user.seed_text))
    client = await nats.connect(live.settings.bus.nats_url, user_credentials=str(path), tls=tls_context(live.state))
    ears = Ear(client)
    await client.subscribe(">", cb=ears.hear)
    await client.flush()
    try:
        yield ears
    finally:
        await client.close()


async def test_a_device_publishes_as_itself_only(live: LivePlatform) -> None:
    async with ear(live) as ears:
        with linked(live, admit(live, CAM)) as link:
            assert link.accepted()
            for channel, kind in ((Channel.STATE, "heartbeat"), (Channel.LETTER, "report"), (Channel.PARCEL, "want")):
                link.say(topic(OTHER.address, channel, kind), b"forged")
            link.say(topic(CAM.address, Channel.DOWN, "assign"), b"forged")
            link.say("cw/in/report/home/cam-1", b"forged")
            link.say("cw/rpc/registry/list", b"forged")
            link.say(topic(CAM.address, Channel.STATE, "heartbeat"), b"own")
            # In order on one connection: when its own word has come, the forged ones will not.
            await ears.wait("cw.1.home.cam-1.state.heartbeat")
        assert not [message for message in ears.heard if message.data == b"forged"]


async def test_a_device_hears_only_what_is_for_it(live: LivePlatform) -> None:
    async with ear(live) as ears:
        with linked(live, admit(live, CAM)) as link:
            assert link.accepted()
            link.listen(CAM.address)
            foreign = (
                topic(OTHER.address, Channel.DOWN, "assign"),
                "cw/1/home/cam-2/down/+",
                "cw/1/home/+/down/+",
                "cw/1/elsewhere/all/+",
                "cw/1/home/cam-1/letter/+",
                "cw/in/#",
                "$SYS/#",
                "#",
            )
            assert link.subscribe(*foreign) == [REFUSED_FILTER] * len(foreign)
            await ears.client.publish("cw.1.home.cam-2.down.assign", b"secret")
            await ears.client.publish("cw.1.elsewhere.all.trust", b"secret")
            await ears.client.publish("cw.1.home.cam-1.down.assign", b"mine")
            await ears.client.flush()
            assert link.received.get(timeout=10) == ("cw/1/home/cam-1/down/assign", b"mine")
            assert link.received.empty()


async def test_a_last_will_speaks_for_its_own_device_only(live: LivePlatform) -> None:
    async with ear(live) as ears:
        forged = Link(
            live,
            admit(live, CAM).jwt,
            "forger-000000000",
            will=(topic(OTHER.address, Channel.STATE, "gone"), b"forged"),
        )
        try:
            if forged.accepted():  # whether the server refuses it now or drops it later is the server's choice
                forged.vanish()
        except queue.Empty:
            pass
        own = Link(
            live, admit(live, CAM).jwt, "honest-000000000", will=(topic(CAM.address, Channel.STATE, "gone"), b"own")
        )
        assert own.accepted()
        own.vanish()
        await ears.wait("cw.1.home.cam-1.state.gone")
        assert "cw.1.home.cam-2.state.gone" not in ears.subjects()
        forged.vanish()


async def test_a_session_is_taken_over_only_with_its_client_id(live: LivePlatform) -> None:
    mine, thief = admit(live, CAM), admit(live, OTHER)
    with linked(live, mine) as link:
        assert link.accepted()
        for guess in ("cam-1", "home/cam-1", str(CAM.address), CAM.public_key[:43], mine.client_id[:-1]):
            with linked(live, thief, guess) as attempt:
                assert attempt.accepted()
        link.listen(CAM.address)
        assert link.open()
        # With the id in hand it does cut the owner off, which is why nobody may ever see it.
        with linked(live, thief, mine.client_id):
            assert link.lost.get(timeout=10) is not None


async def test_a_client_id_stands_in_no_topic_log_or_metric(live: LivePlatform) -> None:
    async with ear(live) as ears, World(live) as world:
        token = await world.token(CAM)
        welcome = await world.enrolled(CAM, token)
        client_id = welcome.client_id or ""
        with linked(live, Pass(welcome.jwt or "", client_id)) as link:
            assert link.accepted()
            link.listen(CAM.address)
            link.say(topic(OTHER.address, Channel.STATE, "heartbeat"), b"provoke a log line")
            link.say(topic(CAM.address, Channel.STATE, "heartbeat"), b"{}")
            await ears.wait("cw.1.home.cam-1.state.heartbeat")
            for secret in (client_id, token.client_id):
                assert not [subject for subject in ears.subjects() if secret in subject]
                assert secret not in live.metrics("registry")
                assert secret not in live.log("registry")
        log = eventually(lambda: "Publish Violation" in live.log("nats-server") and live.log("nats-server"), "the log")
        assert client_id not in log, [line for line in log.splitlines() if client_id in line]


async def test_a_device_credential_is_worth_nothing_on_the_nats_port(live: LivePlatform) -> None:
    credentials = admit(live, CAM)
    problems: list[str] = []

    async def failed(error: Exception) -> None:
        problems.append(str(error))

    with pytest.raises((NatsError, OSError)):
        await nats.connect(
            live.settings.bus.nats_url,
            tls=tls_context(live.state),
            user_jwt_cb=credentials.jwt.encode,
            signature_cb=lambda _nonce: b"",
            allow_reconnect=False,
            error_cb=failed,
        )
    assert "authorization" in " ".join(problems).lower()


async def test_an_expired_or_forged_credential_is_refused_at_the_door(live: LivePlatform) -> None:
    stranger = NKey.generate(nkeys.PREFIX_BYTE_ACCOUNT)
    good = admit(live, CAM)
    head, _, _ = good.jwt.split(".")
    widened = user_jwt(
        stranger, UserClaims("cam", NKey.generate(nkeys.PREFIX_BYTE_USER).public, Permissions((">",), (">",)), 0)
    )
    wrong = {
        "expired": admit(live, CAM, life_s=-10).jwt,
        "another account's": admit(live, CAM, issuer=stranger).jwt,
        "claims changed": f"{head}.{widened.split('.')[1]}.{good.jwt.split('.')[2]}",
        "no JWT": "password",
        "empty": "",
    }
    for what, password in wrong.items():
        with linked(live, Pass(password, "some-client-id-0000")) as link:
            assert link.connected.get(timeout=10) in {BAD_CREDENTIAL, 0x87}, what
    with linked(live, good) as link:
        assert link.accepted()


async def test_a_credential_that_ends_ends_the_connection(live: LivePlatform) -> None:
    with linked(live, admit(live, CAM, life_s=2)) as link:
        assert link.accepted()
        assert link.lost.get(timeout=10) is not None


async def test_a_token_opens_nothing_but_the_door(live: LivePlatform) -> None:
    async with World(live) as world, ear(live) as ears:
        token = await world.token(CAM)
        with linked(live, Pass(token.bootstrap_jwt, token.client_id)) as link:
            assert link.accepted()
            assert link.subscribe("cw/1/home/cam-1/down/+", "cw/1/home/all/+", "cw/1/home/cam-2/down/+") == [
                0,
                REFUSED_FILTER,
                REFUSED_FILTER,
            ]
            for channel, kind in ((Channel.LETTER, "report"), (Channel.STATE, "heartbeat"), (Channel.PARCEL, "piece")):
                link.say(topic(CAM.address, channel, kind), b"forged")
            link.say(topic(CAM.address, Channel.LETTER, "enrol"), b"own")
            await ears.wait("cw.1.home.cam-1.letter.enrol")
        assert not [message for message in ears.heard if message.data == b"forged"]


async def test_revoking_one_device_cuts_that_one_only(live: LivePlatform) -> None:
    async with World(live) as world:
        things = [Thing(f"cam-{number}") for number in range(1, 5)]
        welcomes = [await world.join(thing) for thing in things]
        links = [Link(live, welcome.jwt or "", welcome.client_id or "") for welcome in welcomes]
        try:
            assert all(link.accepted() for link in links)
            for thing, link in zip(things, links, strict=True):
                link.listen(thing.address)
            victim = things[0]
            answer = await world.ask("revoke", DeviceRequest(fleet="home", device=victim.address.device))
            assert (answer["standing"], answer["online"]) == ("revoked", False)
            assert links[0].lost.get(timeout=10) is not None

            async def heard(number: int) -> bytes:
                subject = Topic(things[number].address, Channel.DOWN, "receipt").subject
                await (await world.bus("courier")).nc.publish(subject, b"still there")
                return await asyncio.to_thread(lambda: links[number].received.get(timeout=10)[1])

            assert [await heard(number) for number in (1, 2, 3)] == [b"still there"] * 3
            assert all(link.open() for link in links[1:])

            # It does not come back, not even past a restart of registry and bus, and may not renew.
            again = Pass(welcomes[0].jwt or "", welcomes[0].client_id or "")
            with linked(live, again) as link:
                assert link.connected.get(timeout=10) in {BAD_CREDENTIAL, 0x87}
            assert (await world.enrolled(victim)).reason == "revoked"
            live.kill("registry")
            live.kill("nats-server")
            live.start_bus()
            await asyncio.to_thread(live.start_service, "registry")
            with linked(live, again) as link:
                assert link.connected.get(timeout=10) in {BAD_CREDENTIAL, 0x87}
            other = Pass(welcomes[1].jwt or "", welcomes[1].client_id or "")
            with linked(live, other) as link:
                assert link.accepted()
        finally:
            for link in links:
                link.close()


async def test_a_revoked_device_returns_with_a_newer_token_only(live: LivePlatform) -> None:
    async with World(live) as world:
        thing = Thing("cam-1")
        old = await world.token(thing)
        await world.join(thing)
        await world.ask("revoke", DeviceRequest(fleet="home", device="cam-1"))
        assert (await world.enrolled(thing, old)).reason == "revoked"
        welcome = await world.join(thing)
        with linked(live, Pass(welcome.jwt or "", welcome.client_id or "")) as link:
            assert link.accepted()


@pytest.mark.parametrize(
    ("service", "subject"),
    [
        ("scheduler", "cw.out.home.cam-1.assign.digits"),
        ("ota", f"cw.out.home.cam-1.task.{ULID()}"),
        ("aggregator", "cw.out.home.cam-1.welcome.x"),
        *((name, "cw.in.report.home.cam-1") for name in ("registry", "depot", "ota", "scheduler", "gateway")),
        ("ota", "cw.1.home.cam-1.down.assign"),
        ("depot", "cw.1.home.cam-1.down.assign"),
        ("scheduler", "cw.1.home.cam-1.letter.report"),
        ("gateway", "cw.rpc.registry.revoke"),
        ("scheduler", "cw.ev.ota.rollout"),
        ("courier", "$KV.devices.home.cam-1"),
        ("ota", "$KV.devices.home.cam-1"),
        ("ota", "$JS.API.STREAM.DELETE.IN"),
        ("courier", "$JS.API.STREAM.DELETE.IN"),
        ("operator", "cw.out.home.cam-1.assign.digits"),
        ("operator", "$JS.API.DIRECT.GET.KV_tokens.$KV.tokens.x"),
        ("auditor", "$JS.API.DIRECT.GET.KV_tokens.$KV.tokens.x"),
        ("auditor", "cw.rpc.registry.revoke"),
        ("registry", "$SYS.REQ.CLAIMS.UPDATE"),
    ],
)
def test_nobody_may_publish_what_is_not_its_own(service: str, subject: str) -> None:
    special = {"operator": operator_permissions, "auditor": auditor_permissions}
    permissions = special[service]() if service in special else service_permissions(service)
    assert not [allowed for allowed in permissions.publish if covers(allowed, subject)]


async def test_the_server_enforces_what_services_may_do(live: LivePlatform) -> None:
    forbidden = {
        "scheduler": ("cw.out.home.cam-1.assign.digits", "cw.in.report.home.cam-1"),
        "ota": ("cw.in.report.home.cam-1", "cw.1.home.cam-1.down.assign"),
        "depot": ("cw.out.home.cam-1.assign.digits", "cw.1.home.cam-1.down.assign"),
        "gateway": ("cw.rpc.registry.revoke", "cw.ev.ota.rollout"),
    }
    async with ear(live) as ears:
        buses: list[Bus] = []
        try:
            for service, subjects in forbidden.items():
                bus = await connect(live.state, live.settings, service)
                buses.append(bus)
                for subject in subjects:
                    await bus.nc.publish(subject, b"forged")
                await bus.nc.publish(f"cw.rejects.{service}", b"own")
                await bus.nc.flush()
                await ears.wait(f"cw.rejects.{service}")
            courier = await connect(live.state, live.settings, "courier")
            buses.append(courier)
            await courier.nc.publish("cw.in.report.home.cam-1", b"own")
            await ears.wait("cw.in.report.home.cam-1")
        finally:
            for bus in buses:
                await bus.close()
        assert not [message for message in ears.heard if message.data == b"forged"]


async def test_clear_text_is_not_spoken(live: LivePlatform) -> None:
    bus = live.settings.bus
    with socket.create_connection((bus.host, bus.mqtt_port), timeout=10) as raw:
        raw.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04abcd")
        assert raw.recv(4) == b""  # no CONNACK, the connection is closed
    with pytest.raises(ssl.SSLCertVerificationError), socket.create_connection((bus.host, bus.mqtt_port)) as raw:
        # A certificate that the platform's own authority did not sign is not taken for it either.
        ssl.create_default_context().wrap_socket(raw, server_hostname="127.0.0.1")


def test_clear_text_is_refused_on_a_network(tmp_path: object) -> None:
    for host in ("0.0.0.0", "192.168.1.5", "edge.example.org"):
        with pytest.raises(ValidationError, match="without TLS only 127"):
            BusSettings(host=host, tls=False)
    assert BusSettings(host="127.0.0.1", tls=False).mqtt_url.startswith("mqtt://")
    with pytest.raises(ValidationError, match="tls is off on"):
        init_platform(StateFolder(tmp_path / "state"), InitOptions(host="0.0.0.0", tls=False))  # type: ignore[operator]


def test_all_secrets_are_for_the_owner_alone(live: LivePlatform) -> None:
    secrets = [
        path for folder in ("keys", "creds", "ca") for path in (live.state.root / folder).rglob("*") if path.is_file()
    ]
    assert len(secrets) > 10
    assert not [path for path in [*secrets, live.state.nats_conf] if path.stat().st_mode & 0o077]
    eventually(lambda: live.state.root.stat().st_mode & 0o077 == 0, "the state folder to be private", timeout_s=1)
