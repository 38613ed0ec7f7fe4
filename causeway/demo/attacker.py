"""The attacker of the demo: holds a device's credential and the courier's, depot's and scheduler's keys, all real."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from ulid import ULID

from causeway.demo.checks import DemoError
from schemas.envelope import parse
from schemas.errors import ContractError
from schemas.ids import Address
from schemas.letters import read_down, write_down
from schemas.ota import Assign
from schemas.topics import Channel, Topic, device_filters, parse_mqtt
from services.kit.bus import on_bus
from services.kit.folder import StateFolder
from services.kit.keys import read_letter_key
from services.kit.service import utc_now
from services.kit.settings import Settings

CONNECT_TIMEOUT_S = 10


@dataclass
class Eavesdropper:
    """Listens with a stolen device JWT, under another client id, and keeps every assignment."""

    address: Address
    jwt: str
    assignments: list[bytes] = field(default_factory=list)
    _client: mqtt.Client | None = field(default=None, repr=False)

    def start(self, settings: Settings, state: StateFolder) -> None:
        """Connect and subscribe in the background."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"spy-{ULID()}")
        client.username_pw_set("spy", self.jwt)
        url = urlsplit(settings.bus.mqtt_url)
        if url.scheme == "mqtts":
            client.tls_set_context(ssl.create_default_context(cafile=str(state.ca / "ca.pem")))
        client.on_connect = self._subscribe
        client.on_message = self._keep
        client.connect(url.hostname or "127.0.0.1", url.port or 8883, keepalive=30)
        client.loop_start()
        self._client = client

    def stop(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()

    def oldest_assignment(self) -> bytes:
        """The first envelope that it kept.

        Raises:
            DemoError: if none came by.
        """
        if not self.assignments:
            raise DemoError(f"the eavesdropper on {self.address} saw no assignment")
        return self.assignments[0]

    def _subscribe(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe(device_filters(self.address)[0], qos=0)

    def _keep(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        del client, userdata
        if parse_mqtt(message.topic).kind == "assign":
            self.assignments.append(bytes(message.payload))


async def send_tampered_piece(state: StateFolder, settings: Settings, victim: Address, data: bytes) -> None:
    """As the depot: a piece of the running model with one bit of one byte changed."""
    flipped = bytes([data[0] ^ 1]) + data[1:]
    await _publish(
        state, settings, "depot", Topic(victim, Channel.DOWN, "piece"), hashlib.sha256(data).digest() + flipped
    )


async def send_forged_assignment(state: StateFolder, settings: Settings, victim: Address, genuine: bytes) -> None:
    """As the courier: the genuine assignment, newer, signed with the scheduler's key."""
    letter = read_down(parse(genuine).body, "assign")
    now = utc_now()
    key = read_letter_key(state.service_key("scheduler"))
    data: Assign = letter.data
    envelope = write_down(
        "assign",
        data.model_copy(update={"deadline": now + timedelta(hours=1)}),
        letter_id=str(ULID()),
        service="ota",
        address=victim,
        platform=settings.platform,
        time=now,
        expires=now + timedelta(hours=1),
        generation=letter.generation,
        revision=letter.revision + 1_000_000,
        slot=letter.slot,
        signer=key.signer,
    )
    await _publish(state, settings, "courier", Topic(victim, Channel.DOWN, "assign"), envelope)


async def send_replayed_assignment(state: StateFolder, settings: Settings, victim: Address, stored: bytes) -> None:
    """As the courier: an envelope that was genuine once, byte for byte."""
    await _publish(state, settings, "courier", Topic(victim, Channel.DOWN, "assign"), stored)


async def _publish(state: StateFolder, settings: Settings, identity: str, topic: Topic, raw: bytes) -> None:
    try:
        async with on_bus(state, settings, identity) as bus:
            await bus.nc.publish(topic.subject, raw)
            await bus.nc.flush()
    except ContractError as error:
        raise DemoError(f"the attack could not be sent: {error}") from error
