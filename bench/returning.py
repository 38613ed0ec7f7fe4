"""One simulated device that comes back, without its socket: bytes in, bytes out. `bench.herd` moves thousands of them.

It does what the edge agent does at a return (`edge_runtime/line.py`), with the agent's own pauses: CONNECT with
a last will, SUBSCRIBE, hello until receipt and trust have come, a heartbeat, `got` for the letters that it holds.
What it leaves out is the disk, and, but for a sample of devices, the signatures, since a real device pays for both
with a processor of its own.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from ulid import ULID

from bench.load import heartbeat
from bench.mqtt import (
    CONNACK_OK,
    Packets,
    connect_packet,
    puback_packet,
    publish_packet,
    read_publish,
    subscribe_packet,
)
from edge_runtime.letters.states import GOT_DELAY_S, MAX_GOT_IDS
from edge_runtime.line import HELLO_AGAIN_S, HELLO_ROUND_TRIPS, MAX_HELLO_AGAIN_S
from schemas.courier import Clock, Got, Hello
from schemas.depot import TrustState
from schemas.envelope import Verifier, parse
from schemas.events import Message
from schemas.ids import Address
from schemas.letters import write_state
from schemas.registry import Gone
from schemas.topics import Channel, Topic, device_filters, parse_broadcast

_CONNACK, _PUBLISH, _SUBACK = 2, 3, 9


@dataclass(frozen=True, slots=True)
class Person:
    """Who connects, and with what."""

    fleet: str
    device: str
    client_id: str
    password: str = field(repr=False)


@dataclass(slots=True)
class Story:
    """What became of one device; monotonic seconds, the same clock in every process of a machine."""

    first: float | None = None
    """When it tried to connect for the first time."""
    subscribed: float | None = None
    answered: float | None = None
    """Its hello has its receipt."""
    in_sync: float | None = None
    attempts: int = 0
    hellos: int = 0
    copies: int = 0
    """Letters that came, repetitions included."""


class Conversation(Protocol):
    """One device's side of its connection."""

    story: Story
    wake: float | None
    """When `turn` wants to be called."""

    def begin(self) -> bytes:
        """The first bytes of a new connection."""

    def take(self, data: bytes, now: float) -> bytes:
        """What to answer to what came. Raises ConnectionError if the server refuses."""

    def turn(self, now: float) -> bytes:
        """What to say by itself."""


class Device:
    """A device of ours."""

    def __init__(self, person: Person, letters: int, trust: TrustState, keys: Mapping[str, Verifier] | None) -> None:
        """`letters` wait for it; with `keys` it verifies what it is sent."""
        self.story = Story()
        self.wake: float | None = None
        self.told: float | None = None
        """When it heard the last broadcast."""
        self.arrived: dict[str, float] = {}
        """When each letter came first, by its id."""
        self._person = person
        self._address = Address(person.fleet, person.device)
        self._letters = letters
        self._trust = trust
        self._keys = keys
        self._epoch = str(ULID())
        self._session = ""
        self._packets = Packets()
        self._gots: dict[str, None] = {}
        self._answered = self._trusted = False
        self._hello_at: float | None = None
        self._hello_wait_s = HELLO_AGAIN_S
        self._asked = 0.0
        """When it subscribed: the answer is the agent's first measure of the round trip, too."""
        self._got_at: float | None = None

    def begin(self) -> bytes:
        """CONNECT; every connection is a session of its own."""
        self._session = str(ULID())
        self._packets = Packets()
        self._answered = self._trusted = False
        self._hello_at = self._got_at = self.wake = None
        self.story.attempts += 1
        will = (Topic(self._address, Channel.STATE, "gone").mqtt, self._word("gone", Gone(session=self._session)))
        return connect_packet(self._person.client_id, self._person.password, will=will)

    def take(self, data: bytes, now: float) -> bytes:
        """Answer packets."""
        out = []
        for first, body in self._packets.feed(data):
            kind = first >> 4
            if kind == _CONNACK:
                _accept(body, self._person)
                self._asked = now
                out.append(subscribe_packet(*device_filters(self._address)))
            elif kind == _SUBACK:
                self.story.subscribed = self.story.subscribed or now
                self._hello_wait_s = HELLO_AGAIN_S + HELLO_ROUND_TRIPS * (now - self._asked)
                out.append(self._hello(now))
            elif kind == _PUBLISH:
                topic, _, payload = read_publish(first, body)
                out.append(self._message(topic, payload, now))
        self._plan()
        return b"".join(out)

    def turn(self, now: float) -> bytes:
        """Say hello again, or got."""
        out = []
        if self._got_at is not None and self._got_at <= now:
            out.append(self._say_got(now))
        if self._hello_at is not None and self._hello_at <= now:
            out.append(self._hello(now))
        self._plan()
        return b"".join(out)

    def _message(self, topic: str, payload: bytes, now: float) -> bytes:
        kind = topic.rpartition("/")[2]
        if parse_broadcast(topic) is not None:
            self.told = now
        elif kind == "receipt":
            receipt = self._open(payload)["data"]
            if (receipt["session"], receipt["epoch"]) == (self._session, self._epoch) and not self._answered:
                self._answered = True
                self.story.answered = now
                return self._greeted(now) + self._say(Channel.STATE, "heartbeat", heartbeat(self._address))
        elif kind == "trust":
            self._trusted = True
            return self._greeted(now)
        else:
            letter_id = self._open(payload)["id"]
            self.story.copies += 1
            self.arrived.setdefault(letter_id, now)
            self._gots[letter_id] = None
            if self._got_at is None:
                self._got_at = now + GOT_DELAY_S
        return b""

    def _greeted(self, now: float) -> bytes:
        if self._answered and self._trusted:
            self._hello_at = None
        return self._say_got(now) if self._gots else self._settle(now)

    def _say_got(self, now: float) -> bytes:
        self._got_at = None
        if not self._answered or not self._gots:
            return b""
        ids = list(self._gots)[:MAX_GOT_IDS]
        for each in ids:
            del self._gots[each]
        return self._state("got", Got(ids=ids)) + self._settle(now)

    def _settle(self, now: float) -> bytes:
        whole = self._answered and self._trusted and len(self.arrived) >= self._letters and not self._gots
        if whole and self.story.in_sync is None:
            self.story.in_sync = now
        return b""

    def _hello(self, now: float) -> bytes:
        self.story.hellos += 1
        self._hello_at = now + self._hello_wait_s * random.uniform(0.7, 1.3)
        self._hello_wait_s = min(MAX_HELLO_AGAIN_S, 1.5 * self._hello_wait_s)
        return self._state(
            "hello",
            Hello(
                session=self._session,
                epoch=self._epoch,
                sent={},
                marks={},
                held=list(self.arrived)[-64:],
                trust=self._trust,
                agent="bench",
                clock=Clock(synchronised=True),
            ),
        )

    def _state(self, kind: str, data: Message) -> bytes:
        return self._say(Channel.STATE, kind, self._word(kind, data))

    def _word(self, kind: str, data: Message) -> bytes:
        return write_state(kind, data, event_id=str(ULID()), address=self._address, time=datetime.now(UTC))

    def _say(self, channel: Channel, kind: str, raw: bytes) -> bytes:
        return publish_packet(Topic(self._address, channel, kind).mqtt, raw)

    def _open(self, raw: bytes) -> dict[str, Any]:
        if self._keys is None:
            body = base64.b64decode(json.loads(raw)["payload"])
        else:
            envelope = parse(raw)
            envelope.verify(self._keys)
            body = envelope.body
        fields: dict[str, Any] = json.loads(body)
        return fields

    def _plan(self) -> None:
        times = [at for at in (self._hello_at, self._got_at) if at is not None]
        self.wake = min(times, default=None)


class QueueReader:
    """A client of plain MQTT whose persistent session holds QoS 1 messages: in sync when it acknowledged all."""

    wake: float | None = None

    def __init__(self, person: Person, topic: str, messages: int) -> None:
        """`messages` wait; with none it subscribes, and is in sync once the server has noted that."""
        self.story = Story()
        self._person = person
        self._topic = topic
        self._messages = messages
        self._seen: set[bytes] = set()
        self._packets = Packets()

    def begin(self) -> bytes:
        """CONNECT to the session that the server kept."""
        self._packets = Packets()
        self.story.attempts += 1
        return connect_packet(self._person.client_id, self._person.password, clean=False)

    def take(self, data: bytes, now: float) -> bytes:
        """Acknowledge."""
        out = []
        for first, body in self._packets.feed(data):
            kind = first >> 4
            if kind == _CONNACK:
                _accept(body, self._person)
                self.story.subscribed = self.story.subscribed or now
                if not self._messages:
                    out.append(subscribe_packet(self._topic, qos=1))
            elif kind == _SUBACK:
                self.story.in_sync = now
            elif kind == _PUBLISH:
                _, number, payload = read_publish(first, body)
                self.story.copies += 1
                self._seen.add(payload)
                out.append(puback_packet(number))
                if len(self._seen) == self._messages:
                    self.story.in_sync = self.story.in_sync or now
        return b"".join(out)

    def turn(self, now: float) -> bytes:
        """Nothing."""
        del now
        return b""


def _accept(body: bytes, person: Person) -> None:
    # A session that the server kept shows in the first byte.
    if body[1:] != CONNACK_OK[3:]:
        raise ConnectionError(
            f"connect {person.device}: refused with CONNACK code {body[1]}; 5 means wrong credentials"
        )
