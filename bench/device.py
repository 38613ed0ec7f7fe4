"""A device of the round-trip bench: real MQTT over TLS, real signed letters, the edge agent's own inbox on disk."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ulid import ULID

from bench.mqtt import CONNACK_OK, connect_packet, publish_packet, subscribe_packet
from bench.platform import BenchDevice
from bench.report import BenchError
from edge_runtime.letters.admission import Admission
from edge_runtime.letters.inbox import Inbox
from schemas.courier import Clock, Got, Hello, Receipt
from schemas.envelope import Verifier, parse
from schemas.events import Message, Untyped
from schemas.letters import Place, check_down, read_down, write_state, write_up
from schemas.topics import Channel, Topic, device_filters, parse_mqtt
from services.kit.bus import tls_context
from services.kit.folder import StateFolder
from services.kit.settings import Settings

HELLO_TIMEOUT_S = 30.0
_LIFE = timedelta(hours=1)


@dataclass
class Mail:
    """What one device measured, in seconds.

    Attributes:
        waiting: time of publication by sequence, until a receipt covers it.
        receipts: publication until a verified receipt covers the letter.
        held: time at which a letter down was on disk, by its id.
    """

    waiting: dict[int, float] = field(default_factory=dict)
    receipts: list[float] = field(default_factory=list)
    held: dict[str, float] = field(default_factory=dict)


class Device:
    """One connected device. `courier` and `ota` sign what it accepts."""

    def __init__(self, device: BenchDevice, platform: str, keys: Mapping[str, Verifier], folder: Path) -> None:
        self.address = device.address
        self.mail = Mail()
        self._device = device
        self._platform = platform
        self._keys = keys
        self._inbox = Inbox(folder / f"{device.address.device}.db", time.time)
        self._session, self._epoch = str(ULID()), str(ULID())
        self._sequence = 0
        self._greeted = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._storing: set[asyncio.Task[None]] = set()

    async def connect(self, state: StateFolder, settings: Settings) -> None:
        """Connect, subscribe, say hello and wait for its receipt.

        Raises:
            BenchError: if the server or the courier does not answer.
        """
        bus = settings.bus
        tls = tls_context(state) if bus.tls else None
        reader, self._writer = await asyncio.open_connection(bus.host, bus.mqtt_port, ssl=tls)
        self._writer.write(connect_packet(self._device.client_id, self._device.jwt))
        if await reader.readexactly(4) != CONNACK_OK:
            raise BenchError(f"{self.address} was refused by the bus; see nats-server's log")
        self._writer.write(subscribe_packet(*device_filters(self.address)))
        self._reading = asyncio.create_task(self._read(reader))
        clock = Clock(synchronised=True)
        hello = Hello(session=self._session, epoch=self._epoch, sent={}, marks={}, agent="bench", clock=clock)
        self._say("hello", hello)
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                await self._greeted.wait()
        except TimeoutError as error:
            raise BenchError(f"hello of {self.address} was not answered within {HELLO_TIMEOUT_S:.0f} s") from error

    async def close(self) -> None:
        """Disconnect; what went wrong while reading is raised here."""
        assert self._writer is not None
        assert self._reading is not None
        ended = self._reading.done()
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        await asyncio.gather(*self._storing)
        self._writer.close()
        self._inbox.close()
        if ended:
            raise BenchError(f"the connection of {self.address} ended early; see nats-server's log")

    def send_letter(self) -> None:
        """Sign a letter and publish it; timed from just before it is written."""
        self._sequence += 1
        now = datetime.now(UTC)
        raw = write_up(
            "sample",
            Untyped.model_validate({"reading": self._sequence, "unit": "mm"}),
            Place(self._epoch, "normal", self._sequence, min(self.mail.waiting, default=self._sequence)),
            letter_id=str(ULID()),
            address=self.address,
            platform=self._platform,
            time=now,
            expires=now + _LIFE,
            signer=self._device.signer,
        )
        self.mail.waiting[self._sequence] = time.monotonic()
        self._publish(Topic(self.address, Channel.LETTER, "sample"), raw)

    def _say(self, kind: str, data: Message) -> None:
        raw = write_state(kind, data, event_id=str(ULID()), address=self.address, time=datetime.now(UTC))
        self._publish(Topic(self.address, Channel.STATE, kind), raw)

    def _publish(self, topic: Topic, body: bytes) -> None:
        assert self._writer is not None
        self._writer.write(publish_packet(topic.mqtt, body))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            kind = (await reader.readexactly(1))[0] >> 4
            body = await reader.readexactly(await _read_length(reader))
            if kind == 3:  # PUBLISH
                end = 2 + struct.unpack_from(">H", body)[0]
                self._take(body[2:end].decode(), body[end:])

    def _take(self, topic: str, raw: bytes) -> None:
        kind = parse_mqtt(topic).kind
        if kind == "receipt":
            self._take_receipt(raw)
        elif kind == "assign":
            task = asyncio.create_task(self._hold(raw))
            self._storing.add(task)
            task.add_done_callback(self._storing.discard)

    def _take_receipt(self, raw: bytes) -> None:
        envelope = parse(raw)
        envelope.verify(self._keys)
        letter = read_down(envelope.body, "receipt")
        receipt: Receipt = letter.data
        check_down(letter, self.address, self._platform, datetime.now(UTC))
        if receipt.session != self._session or receipt.epoch != self._epoch:
            return
        self._greeted.set()
        mark, now = receipt.marks.get("normal", 0), time.monotonic()
        for sequence in [s for s in self.mail.waiting if s <= mark]:
            self.mail.receipts.append(now - self.mail.waiting.pop(sequence))

    async def _hold(self, raw: bytes) -> None:
        # A device has a disk of its own; here each waits for its own in a thread.
        letter_id = await asyncio.to_thread(self._store, raw)
        self.mail.held.setdefault(letter_id, time.monotonic())
        self._say("got", Got(ids=[letter_id]))

    def _store(self, raw: bytes) -> str:
        envelope = parse(raw)
        keyid = envelope.verify(self._keys)
        letter = read_down(envelope.body, "assign")
        check_down(letter, self.address, self._platform, datetime.now(UTC))
        if self._inbox.judge(letter, "assign") is Admission.NEW:
            self._inbox.take(letter, "assign", raw, keyid)
            self._inbox.handled(letter.id)
        return letter.id


async def _read_length(reader: asyncio.StreamReader) -> int:
    length = 0
    for shift in (0, 7, 14, 21):
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
    return length
