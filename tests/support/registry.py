"""Devices, and the neighbours that the registry needs, for tests: real keys, real letters, a real bus."""

from __future__ import annotations

import asyncio
import base64
import queue
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import paho.mqtt.client as mqtt
from nats.js.errors import NotFoundError
from ulid import ULID

from schemas.depot import TrustState
from schemas.envelope import Signer, parse
from schemas.ids import Address
from schemas.letters import Place, read_down, write_up
from schemas.registry import Capabilities, Enrol, EventReport, Token, TrustFloors, Welcome
from schemas.topics import device_filters, in_subject, out_subject
from services.kit import rpc
from services.kit.api.depot import TrustAnswer
from services.kit.api.registry import DeviceRequest, TokenRequest
from services.kit.bus import Bus, connect
from services.kit.credentials import NKey
from services.kit.devices import DeviceRecord
from services.kit.streams import ensure_owned
from services.registry.enrolment import answer_id
from services.registry.minting import Mint, bus_key
from services.registry.tokens import proof
from tests.support.platform import LivePlatform, until

FLOORS = TrustFloors(root=1, timestamp=7, snapshot=3, targets=2)
CAPABILITIES = Capabilities(os="Linux", arch="x86_64", python="3.11", agent="test", cpu_count=2, ram_mb=900, disk_mb=9)


class Thing:
    """A device without an agent: keys, and letters made with them."""

    def __init__(self, device: str, fleet: str = "home") -> None:
        self.address = Address(fleet, device)
        self.signer = Signer.generate()
        self.public_key = base64.b64encode(self.signer.public_key).decode()
        self.seal_key = base64.b64encode(bytes(range(32))).decode()
        self.epoch = str(ULID())
        self.sequence = 0

    def enrol(self, token: Token | None, /, **changes: Any) -> Enrol:
        fields: dict[str, Any] = {
            "token": token.token if token else None,
            "public_key": self.public_key,
            "seal_key": self.seal_key,
            "proof": proof(token.secret, self.public_key, self.seal_key, self.address) if token else None,
            "capabilities": CAPABILITIES,
        }
        return Enrol(**fields | changes)

    def letter(self, platform: str, kind: str, data: Enrol | EventReport, letter_id: str | None = None) -> bytes:
        self.sequence += 1
        now = datetime.now(UTC)
        return write_up(
            kind,
            data,
            Place(self.epoch, "control", self.sequence, 1),
            letter_id=letter_id or str(ULID()),
            address=self.address,
            platform=platform,
            time=now,
            expires=now + timedelta(hours=1),
            signer=self.signer,
        )


class World:
    """The bus with a registry on it, the courier's and the depot's place taken by the test."""

    def __init__(self, live: LivePlatform) -> None:
        self.live = live
        self.platform = live.settings.platform
        self._buses: dict[str, Bus] = {}

    async def __aenter__(self) -> Self:
        depot = await self.bus("depot")
        rpc.serve(depot, "depot", "trust", rpc.Nothing, self._trust)
        await depot.broker.start()
        await ensure_owned((await self.bus("courier")).js, "courier")
        await asyncio.to_thread(self.live.start_service, "registry")
        return self

    async def __aexit__(self, *_: object) -> None:
        for bus in self._buses.values():
            await bus.close()

    async def bus(self, user: str) -> Bus:
        if user not in self._buses:
            self._buses[user] = await connect(self.live.state, self.live.settings, user)
        return self._buses[user]

    async def token(self, thing: Thing, ttl_s: float = 3_600.0) -> Token:
        answer = await self.ask(
            "token", TokenRequest(fleet=thing.address.fleet, device=thing.address.device, ttl_s=ttl_s)
        )
        return Token.model_validate(answer)

    async def ask(self, verb: str, request: Any, timeout_s: float = 10.0) -> Any:
        return await rpc.call(await self.bus("operator"), "registry", verb, request, timeout_s=timeout_s)

    async def show(self, thing: Thing, timeout_s: float = 10.0) -> Any:
        request = DeviceRequest(fleet=thing.address.fleet, device=thing.address.device)
        return await self.ask("show", request, timeout_s)

    async def put_in(self, thing: Thing, kind: str, letter: bytes) -> None:
        """Store a letter in IN, as the courier does once it has verified it."""
        await (await self.bus("courier")).js.publish(in_subject(kind, thing.address), letter)

    async def enrolled(self, thing: Thing, token: Token | None = None, /, **changes: Any) -> Welcome:
        """Send an enrol letter and read its answer."""
        data = thing.enrol(token, **changes)
        letter_id = str(ULID())
        await self.put_in(thing, "enrol", thing.letter(self.platform, "enrol", data, letter_id))
        return await self.welcome(thing, letter_id)

    async def welcome(self, thing: Thing, letter_id: str) -> Welcome:
        envelope = parse(await self.mail(thing, answer_id(thing.address, letter_id)))
        welcome: Welcome = read_down(envelope.body, "welcome").data
        return welcome

    async def mail(self, thing: Thing, slot: str) -> bytes:
        js = (await self.bus("courier")).js

        async def look() -> bytes | None:
            try:
                return (await js.get_last_msg("OUT", out_subject(thing.address, "welcome", slot))).data
            except NotFoundError:
                return None

        return await until(look, f"a welcome for {thing.address}")

    async def join(self, thing: Thing) -> Welcome:
        welcome = await self.enrolled(thing, await self.token(thing))
        assert not welcome.refused, welcome
        return welcome

    @staticmethod
    async def _trust(_: rpc.Nothing) -> Any:
        head = TrustState(root=1, timestamp=7, snapshot=3, targets=2)
        return TrustAnswer(head=head, floors=FLOORS, root_sha256="ab" * 32).model_dump(mode="json")


@dataclass(frozen=True)
class Pass:
    """Credentials as the registry makes them, without asking it."""

    jwt: str
    client_id: str


def admit(live: LivePlatform, thing: Thing, *, life_s: int = 3_600, issuer: NKey | None = None) -> Pass:
    """What a welcome would give `thing`; `issuer` is the account unless a test forges one."""
    mint = Mint(issuer or NKey.load(live.state.bus_keys / "account.nk"), b"secret of the test")
    now = int(time.time())
    record = DeviceRecord(
        fleet=thing.address.fleet,
        device=thing.address.device,
        public_key=thing.public_key,
        seal_key=thing.seal_key,
        capabilities=CAPABILITIES,
        enrol_id=str(ULID()),
        bus_key=bus_key(thing.public_key),
        jwt_issued=now - 60,
        jwt_expires=now + life_s,
        enrolled_at="",
    )
    return Pass(mint.device_jwt(record), mint.client_id(thing.address, record.enrol_id))


class Link:
    """A real MQTT connection of a device."""

    def __init__(
        self,
        live: LivePlatform,
        password: str,
        client_id: str,
        *,
        will: tuple[str, bytes] | None = None,
        keepalive: int = 60,
    ) -> None:
        self.connected: queue.Queue[int] = queue.Queue()
        self.lost: queue.Queue[int] = queue.Queue()
        self.granted: queue.Queue[list[int]] = queue.Queue()
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False, protocol=mqtt.MQTTv311
        )
        self.client.username_pw_set("device", password)
        if live.settings.bus.tls:
            self.client.tls_set_context(ssl.create_default_context(cafile=str(live.state.ca / "ca.pem")))
        if will is not None:
            self.client.will_set(*will)
        self.client.on_connect = lambda _c, _u, _f, reason, _p: self.connected.put(reason.value)
        self.client.on_disconnect = lambda _c, _u, _f, reason, _p: self.lost.put(reason.value)
        self.client.on_subscribe = lambda _c, _u, _m, reasons, _p: self.granted.put([r.value for r in reasons])
        self.client.on_message = lambda _c, _u, message: self.received.put((message.topic, message.payload))
        self.client.connect(live.settings.bus.host, live.settings.bus.mqtt_port, keepalive=keepalive)
        self.client.loop_start()

    def accepted(self) -> bool:
        """Whether the server let this connection in."""
        return self.connected.get(timeout=10) == 0

    def subscribe(self, *filters: str) -> list[int]:
        self.client.subscribe([(topic, 0) for topic in filters])
        return self.granted.get(timeout=10)

    def listen(self, address: Address) -> None:
        assert self.subscribe(*device_filters(address)) == [0, 0]

    def say(self, topic: str, payload: bytes) -> None:
        self.client.publish(topic, payload).wait_for_publish(10)

    def open(self) -> bool:
        """Whether nothing has cut this connection: the server still answers it."""
        if not self.lost.empty():
            return False
        return self.client.is_connected()

    def close(self) -> None:
        self.client.disconnect()
        self._end()

    def vanish(self) -> None:
        """End without a word, so that the server speaks the last will."""
        connection = self.client.socket()
        if connection is not None:
            connection.shutdown(socket.SHUT_RDWR)
        self._end()

    def _end(self) -> None:
        self.client.loop_stop()
        # paho leaves closing its wake-up sockets to the garbage collector, which may come too late.
        self.client._reset_sockets()
