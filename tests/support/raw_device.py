"""A device without the runtime: a real MQTT client that signs its letters, for tests of the platform's side.

`RawDevice` does nothing by itself: tests say hello, send, send again and confirm. `enrol` writes the records that the
registry would write. `in_bus` runs one coroutine over a connection with any service's credentials.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import nkeys
import paho.mqtt.client as mqtt
from ulid import ULID

from schemas.courier import Clock, Got, Hello, Receipt
from schemas.envelope import Signer, Verifier, parse
from schemas.events import DownLetter, Lane, Message
from schemas.ids import Address
from schemas.letters import Place, check_down, read_down, write_state, write_up
from schemas.registry import Capabilities, EventReport
from schemas.topics import Channel, Topic, bootstrap_permissions, device_filters, device_permissions
from services.kit.bus import Bus, on_bus
from services.kit.credentials import BEARER_SUBSCRIPTIONS, NKey, Permissions, UserClaims, public_nkey, user_jwt
from services.kit.devices import DeviceRecord, Standing
from services.kit.keys import read_letter_key
from tests.support.platform import LivePlatform, eventually
from tests.support.records import put_records

T = TypeVar("T")
CAPABILITIES = Capabilities(os="linux", arch="x86_64", python="3.11", agent="test", cpu_count=1, ram_mb=64, disk_mb=64)


def in_bus(live: LivePlatform, user: str, work: Callable[[Bus], Awaitable[T]]) -> T:
    """Do something over a short connection of `user`."""

    async def run() -> T:
        async with on_bus(live.state, live.settings, user) as bus:
            return await work(bus)

    return asyncio.run(run())


def enrol(live: LivePlatform, *devices: RawDevice, standing: Standing = "enrolled") -> None:
    """Write the records of devices, as the registry does after an enrol letter."""

    async def write(bus: Bus) -> None:
        await put_records(live.state, bus, *(device.record(standing) for device in devices))

    in_bus(live, "registry", write)


@dataclass
class RawDevice:
    """One device of a running platform.

    Attributes:
        sent: raw envelope of every letter by (lane, sequence), to be sent again.
        receipts: verified receipts, in the order of their arrival.
        letters: every letter down as it came: kind and raw envelope.
    """

    live: LivePlatform
    name: str
    fleet: str = "home"
    bootstrap: bool = False
    signer: Signer = field(default_factory=Signer.generate)
    epoch: str = field(default_factory=lambda: str(ULID()))
    session: str = field(default_factory=lambda: str(ULID()))
    sent: dict[tuple[str, int], tuple[str, bytes]] = field(default_factory=dict)
    receipts: list[Receipt] = field(default_factory=list)
    letters: list[tuple[str, bytes]] = field(default_factory=list)
    subscribed: threading.Event = field(default_factory=threading.Event)
    _client: mqtt.Client | None = None

    @property
    def address(self) -> Address:
        return Address(self.fleet, self.name)

    def record(self, standing: Standing = "enrolled") -> DeviceRecord:
        key = base64.b64encode(self.signer.public_key).decode()
        return DeviceRecord(
            fleet=self.fleet,
            device=self.name,
            public_key=key,
            seal_key=key,
            standing=standing,
            capabilities=CAPABILITIES,
            enrol_id=str(ULID()),
            bus_key=public_nkey(self.signer.public_key, nkeys.PREFIX_BYTE_USER),
            jwt_issued=int(time.time()) - 60,
            jwt_expires=int(time.time()) + 3_600,
            enrolled_at=datetime.now(UTC).isoformat(),
        )

    def connect(self) -> None:
        """Connect with an own JWT and wait until the subscriptions hold."""
        bus = self.live.settings.bus
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"raw-{ULID()}", clean_session=True)
        client.username_pw_set("device", self._jwt())
        if bus.tls:
            client.tls_set_context(ssl.create_default_context(cafile=str(self.live.state.ca / "ca.pem")))
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._connected
        client.on_subscribe = lambda *_: self.subscribed.set()
        client.on_message = self._received
        client.connect(bus.host, bus.mqtt_port, keepalive=30)
        client.loop_start()
        self._client = client
        assert self.subscribed.wait(10), f"{self.name} did not connect within 10 s"

    def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            # paho leaves closing its wake-up sockets to the garbage collector, which may come too late.
            self._client._reset_sockets()
            self._client = None

    def hello(self, held: tuple[str, ...] = ()) -> None:
        """Say hello once."""
        hello = Hello(
            session=self.session,
            epoch=self.epoch,
            sent=self.issued(),
            marks={},
            held=list(held),
            agent="raw",
            clock=Clock(synchronised=True),
        )
        self.state("hello", hello)

    def greet(self) -> Receipt:
        """Say hello until it is answered."""
        before = len(self.receipts)

        def answered() -> bool:
            self.hello()
            time.sleep(0.1)
            return len(self.receipts) > before

        eventually(answered, f"an answer to the hello of {self.name}")
        return self.receipts[-1]

    def got(self, *ids: str) -> None:
        """Confirm letters down."""
        self.state("got", Got(ids=list(ids)))

    def state(self, kind: str, data: Message) -> None:
        """Publish a state message."""
        raw = write_state(kind, data, event_id=str(ULID()), address=self.address, time=datetime.now(UTC))
        self.publish(Topic(self.address, Channel.STATE, kind), raw)

    def write(
        self,
        kind: str = "event",
        data: Message | None = None,
        *,
        lane: Lane = "normal",
        sequence: int | None = None,
        floor: int = 1,
        platform: str | None = None,
        lifetime_s: float = 600.0,
        signer: Signer | None = None,
        epoch: str | None = None,
    ) -> bytes:
        """Sign a letter, by default the next of its lane."""
        sequence = sequence or self.issued().get(lane, 0) + 1
        now = datetime.now(UTC)
        return write_up(
            kind,
            data or EventReport(name="test", message=f"{lane} {sequence}"),
            Place(epoch or self.epoch, lane, sequence, floor),
            letter_id=str(ULID()),
            address=self.address,
            platform=platform or self.live.settings.platform,
            time=now,
            expires=now + timedelta(seconds=lifetime_s),
            signer=signer or self.signer,
        )

    def send(self, kind: str = "event", data: Message | None = None, *, lane: Lane = "normal", floor: int = 1) -> int:
        """Sign and publish the next letter of a lane; returns its sequence."""
        sequence = self.issued().get(lane, 0) + 1
        raw = self.write(kind, data, lane=lane, sequence=sequence, floor=floor)
        self.sent[lane, sequence] = (kind, raw)
        self.put(kind, raw)
        return sequence

    def send_again(self) -> None:
        """Publish every letter that no receipt covers, in order."""
        for (lane, sequence), (kind, raw) in sorted(self.sent.items()):
            if sequence > self.marks().get(lane, 0):
                self.put(kind, raw)

    def settle(self, timeout_s: float = 30.0) -> None:
        """Say hello and send again until everything is receipted, as the runtime does."""
        pause = [0.0]

        def settled() -> bool:
            if self.marks() == self.issued():
                return True
            if time.monotonic() >= pause[0]:
                self.hello()
                self.send_again()
                pause[0] = time.monotonic() + 0.5
            return False

        eventually(settled, f"receipts of {self.name} for {self.issued()}", timeout_s)

    def put(self, kind: str, raw: bytes) -> None:
        """Publish bytes as a letter."""
        self.publish(Topic(self.address, Channel.LETTER, kind), raw)

    def publish(self, topic: Topic, raw: bytes) -> None:
        """Publish bytes, QoS 0; lost if the connection is down, like everything at QoS 0."""
        assert self._client is not None
        self._client.publish(topic.mqtt, raw, qos=0)

    def issued(self) -> dict[str, int]:
        """Highest sequence per lane."""
        highest: dict[str, int] = {}
        for lane, sequence in self.sent:
            highest[lane] = max(highest.get(lane, 0), sequence)
        return highest

    def marks(self) -> dict[str, int]:
        """Marks of the newest receipt of this epoch."""
        for receipt in reversed(self.receipts):
            if receipt.epoch == self.epoch:
                return dict(receipt.marks)
        return {}

    def down(self, kind: str) -> list[DownLetter[Any]]:
        """Letters of one kind that came down, parsed."""
        return [read_down(parse(raw).body, kind) for k, raw in self.letters if k == kind]

    def _connected(self, client: mqtt.Client, *_: object) -> None:
        for pattern in device_filters(self.address)[: 1 if self.bootstrap else 2]:
            client.subscribe(pattern)

    def _received(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        kind = message.topic.rsplit("/", 1)[1]
        if kind != "receipt":
            self.letters.append((kind, message.payload))
            return
        courier = Verifier(read_letter_key(self.live.state.service_key("courier")).signer.public_key)
        envelope = parse(message.payload)
        envelope.verify({courier.keyid: courier})
        letter = read_down(envelope.body, "receipt")
        check_down(letter, self.address, self.live.settings.platform, datetime.now(UTC))
        if letter.data.session == self.session:
            self.receipts.append(letter.data)

    def _jwt(self) -> str:
        account = NKey.load(self.live.state.bus_keys / "account.nk")
        publish, subscribe = (bootstrap_permissions if self.bootstrap else device_permissions)(self.address)
        claims = UserClaims(
            name=str(self.address),
            subject=public_nkey(self.signer.public_key, nkeys.PREFIX_BYTE_USER),
            permissions=Permissions(publish, subscribe),
            issued_at=int(time.time()) - 60,
            expires_at=int(time.time()) + 3_600,
            mqtt_only=True,
            bearer=True,
            subscriptions=BEARER_SUBSCRIPTIONS,
        )
        return user_jwt(account, claims)
