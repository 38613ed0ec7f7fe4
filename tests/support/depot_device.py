"""A device as the depot sees it: a real MQTT client with a real JWT, and what it needs to have been enrolled."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime

import nkeys
import paho.mqtt.client as mqtt
from ulid import ULID

from schemas.courier import Clock, Hello
from schemas.depot import TrustState
from schemas.envelope import Signer
from schemas.ids import Address
from schemas.letters import write_state
from schemas.registry import Capabilities
from schemas.topics import Channel, Topic, bootstrap_permissions, device_filters, device_permissions
from services.kit.bus import on_bus
from services.kit.credentials import NKey, Permissions, UserClaims, user_jwt
from services.kit.devices import DeviceRecord
from tests.support.platform import LivePlatform, eventually
from tests.support.records import put_records

CAPABILITIES = Capabilities(os="linux", arch="x86_64", python="3.11", agent="test", cpu_count=1, ram_mb=1, disk_mb=1)


class MqttDevice:
    """Speaks MQTT as the runtime's link does; keeps what comes down, newest last, by topic."""

    def __init__(self, live: LivePlatform, address: Address, *, enrolled: bool = True) -> None:
        self.address = address
        self.down: dict[str, list[bytes]] = {}
        self.hook: Callable[[str, bytes], None] | None = None
        self.lose: Callable[[str], bool] = lambda _: False
        account = NKey.load(live.state.bus_keys / "account.nk")
        publish, subscribe = (device_permissions if enrolled else bootstrap_permissions)(address)
        claims = UserClaims(
            "device",
            NKey.generate(nkeys.PREFIX_BYTE_USER).public,
            Permissions(publish, subscribe),
            int(time.time()) - 60,
            mqtt_only=True,
            bearer=True,
            subscriptions=8,
        )
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=str(ULID()))
        self._client.username_pw_set("device", user_jwt(account, claims))
        self._client.tls_set_context(ssl.create_default_context(cafile=str(live.state.ca / "ca.pem")))
        self._client.on_message = self._received
        self._subscribed: list[int] = []
        self._client.on_subscribe = lambda *_: self._subscribed.append(1)
        self._filters = device_filters(address)[: 2 if enrolled else 1]
        self._client.on_connect = lambda client, *_: [client.subscribe(f) for f in self._filters]
        bus = live.settings.bus
        self._client.connect(bus.host, bus.mqtt_port, keepalive=30)
        self._client.loop_start()
        eventually(lambda: len(self._subscribed) == len(self._filters), "the device to be subscribed")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # paho leaves closing its wake-up sockets to the garbage collector, which may come too late.
        self._client._reset_sockets()

    def publish(self, channel: Channel, kind: str, raw: bytes) -> None:
        self._client.publish(Topic(self.address, channel, kind).mqtt, raw)

    def send_parcel(self, kind: str, raw: bytes) -> bool:
        """Part of `edge_runtime.ports.Sender`; a lost parcel looks sent."""
        if not self.lose(kind):
            self.publish(Channel.PARCEL, kind, raw)
        return True

    def hello(self, trust: TrustState | None) -> None:
        hello = Hello(
            session=str(ULID()),
            epoch=str(ULID()),
            sent={},
            marks={},
            trust=trust,
            agent="test",
            clock=Clock(synchronised=True),
        )
        now = datetime.now(UTC)
        self.publish(
            Channel.STATE, "hello", write_state("hello", hello, event_id=str(ULID()), address=self.address, time=now)
        )

    def newest(self, kind: str, count: int = 1) -> bytes:
        """Wait for so many messages of a kind; the last of them."""
        return eventually(lambda: len(self.down.get(kind, [])) >= count and self.down[kind], f"{count} {kind}")[-1]

    def _received(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        kind = message.topic.split("/")[-1]
        if "/all/" in message.topic:
            kind = f"all.{kind}"
        self.down.setdefault(kind, []).append(message.payload)
        if self.hook is not None:
            self.hook(kind, message.payload)


def enrol(live: LivePlatform, *addresses: Address, standing: str = "enrolled") -> None:
    """Write the records that the registry would."""

    async def write() -> None:
        async with on_bus(live.state, live.settings, "registry") as bus:
            for address in addresses:
                public = base64.b64encode(Signer.generate().public_key).decode()
                record = DeviceRecord(
                    fleet=address.fleet,
                    device=address.device,
                    public_key=public,
                    seal_key=public,
                    standing=standing,  # type: ignore[arg-type]
                    capabilities=CAPABILITIES,
                    enrol_id=str(ULID()),
                    bus_key="U",
                    jwt_issued=0,
                    jwt_expires=1,
                    enrolled_at="2030-01-01T00:00:00Z",
                )
                await put_records(live.state, bus, record)

    asyncio.run(write())
