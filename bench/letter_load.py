"""Many devices that send signed letters: `python -m bench.letter_load` takes a plan on standard input.

All letters are signed before the clock starts. Each device keeps a window of letters on their way and moves on with
each answer: towards the platform with the courier's receipts, going back to the last mark after a silence; towards a
plain broker with PUBACKs.
"""

from __future__ import annotations

import base64
import json
import re
import select
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ulid import ULID

from bench.mqtt import accepted, connect_packet, open_device, publish_head, publish_packet, subscribe_packet
from schemas.courier import Clock, Hello
from schemas.envelope import Signer
from schemas.events import Untyped
from schemas.ids import Address
from schemas.letters import Place, write_state, write_up
from schemas.topics import Channel, Topic, device_filters

SILENCE_S = 3.0
STALL_S = 60.0
READ_BYTES = 1 << 16
_MARK = re.compile(rb'"normal":([0-9]+)')
_LIFE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one generator shall do.

    Attributes:
        platform: its id; empty towards a plain broker, where letters go at QoS 1 and PUBACKs count.
        devices: fleet, device, client id, password and base64 seed of each connection.
        letters: of each device.
        window: letters of a device on their way.
    """

    host: str
    port: int
    platform: str
    devices: list[tuple[str, str, str, str, str]]
    letters: int
    window: int

    def write(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Sender:
    """One device: its signed letters as packets, and what became of them."""

    def __init__(self, plan: Plan, device: tuple[str, str, str, str, str]) -> None:
        fleet, name, self.client_id, self.password, seed = device
        self.address = Address(fleet, name)
        self.session, self.epoch = str(ULID()), str(ULID())
        self._receipted = bool(plan.platform)
        signer = Signer.from_seed(base64.b64decode(seed))
        self.packets = [self._letter(number, plan, signer) for number in range(1, plan.letters + 1)]
        self.window = plan.window
        self.sent = self.mark = self.resent = 0
        self.heard = 0.0
        self.answered = False
        self.link: socket.socket
        self.unsent = b""
        self._incoming = b""

    @property
    def finished(self) -> bool:
        """Whether every letter is answered."""
        return self.mark == len(self.packets)

    def hello(self) -> bytes:
        """First word to the courier."""
        data = Hello(
            session=self.session, epoch=self.epoch, sent={}, marks={}, agent="bench", clock=Clock(synchronised=True)
        )
        raw = write_state("hello", data, event_id=str(ULID()), address=self.address, time=datetime.now(UTC))
        return publish_packet(Topic(self.address, Channel.STATE, "hello").mqtt, raw)

    def due(self, now: float) -> bytes:
        """Packets that the window allows now."""
        if self._receipted and self.sent > self.mark and now > self.heard + SILENCE_S:
            self.resent += self.sent - self.mark
            self.sent, self.heard = self.mark, now
        last = min(len(self.packets), self.mark + self.window)
        packets = self.packets[self.sent : last]
        if packets and self.sent == self.mark:
            self.heard = now
        self.sent = max(self.sent, last)
        return b"".join(packets)

    def take(self, data: bytes, now: float) -> None:
        """Bytes from the server."""
        self._incoming += data
        while (packet := self._packet()) is not None:
            kind, body = packet
            if kind == 4:  # PUBACK; the broker acknowledges in order
                self.mark, self.heard = self.mark + 1, now
            elif kind == 3:
                self._receipt(body, now)

    def _receipt(self, body: bytes, now: float) -> None:
        end = 2 + struct.unpack_from(">H", body)[0]
        if not body[2:end].endswith(b"/receipt"):
            return
        text = base64.b64decode(json.loads(body[end:])["payload"])
        if self.session.encode() not in text:
            return
        self.answered = True
        found = _MARK.search(text)
        if found is not None and int(found[1]) > self.mark:
            self.mark, self.heard = int(found[1]), now

    def _packet(self) -> tuple[int, bytes] | None:
        length, at = 0, 1
        for shift in (0, 7, 14, 21):
            if len(self._incoming) <= at:
                return None
            byte = self._incoming[at]
            at += 1
            length |= (byte & 0x7F) << shift
            if not byte & 0x80:
                break
        if len(self._incoming) < at + length:
            return None
        kind, body = self._incoming[0] >> 4, self._incoming[at : at + length]
        self._incoming = self._incoming[at + length :]
        return kind, body

    def _letter(self, number: int, plan: Plan, signer: Signer) -> bytes:
        now = datetime.now(UTC)
        raw = write_up(
            "sample",
            Untyped.model_validate({"reading": number, "unit": "mm"}),
            Place(self.epoch, "normal", number, 1),
            letter_id=str(ULID()),
            address=self.address,
            platform=plan.platform or str(ULID()),
            time=now,
            expires=now + _LIFE,
            signer=signer,
        )
        topic = Topic(self.address, Channel.LETTER, "sample").mqtt
        if self._receipted:
            return publish_packet(topic, raw)
        # QoS 1 has a packet id between the topic and the body (MQTT 3.1.1, 3.3.2).
        head = publish_head(topic, len(raw) + 2)
        return bytes([head[0] | 0x02]) + head[1:] + struct.pack(">H", (number - 1) % 65_535 + 1) + raw


class Crowd:
    """All senders of one generator."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.senders = [Sender(plan, device) for device in plan.devices]
        self._poll = select.epoll()
        self._by_fd: dict[int, Sender] = {}

    def connect(self) -> None:
        """Open every connection; towards the platform also say hello and wait for its receipt."""
        for sender in self.senders:
            link = open_device(self._plan.host, self._plan.port)
            link.sendall(connect_packet(sender.client_id, sender.password))
            accepted(link, str(sender.address))
            if self._plan.platform:
                link.sendall(subscribe_packet(*device_filters(sender.address)) + sender.hello())
            link.setblocking(False)
            sender.link = link
            self._by_fd[link.fileno()] = sender
            self._poll.register(link, select.EPOLLIN)
        deadline = time.monotonic() + STALL_S
        while self._plan.platform and not all(sender.answered for sender in self.senders):
            self._look(0.1)
            if time.monotonic() > deadline:
                raise TimeoutError("hello of a device was not answered; see the courier's log")

    def send(self) -> dict[str, Any]:
        """Send all letters until each is answered."""
        begun, moved, before = time.monotonic(), time.monotonic(), 0
        open_senders = self.senders
        while open_senders:
            now = time.monotonic()
            for sender in open_senders:
                if not sender.unsent:
                    self._write(sender, sender.due(now))
            self._look(0.01)
            open_senders = [sender for sender in open_senders if not sender.finished]
            answered = sum(sender.mark for sender in self.senders)
            if answered != before:
                before, moved = answered, time.monotonic()
            if time.monotonic() > moved + STALL_S:
                raise TimeoutError(f"{answered} letters are answered, and nothing moved for {STALL_S:.0f} s")
        return {
            "letters": before,
            "begun": begun,
            "took_s": moved - begun,
            "resent": sum(sender.resent for sender in self.senders),
        }

    def _write(self, sender: Sender, data: bytes) -> None:
        if not data:
            return
        try:
            done = sender.link.send(data)
        except BlockingIOError:
            done = 0
        sender.unsent = data[done:]
        wanted = select.EPOLLIN | (select.EPOLLOUT if sender.unsent else 0)
        self._poll.modify(sender.link, wanted)

    def _look(self, timeout_s: float) -> None:
        for fd, events in self._poll.poll(timeout_s):
            sender = self._by_fd[fd]
            if events & select.EPOLLOUT:
                self._write(sender, sender.unsent)
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                data = sender.link.recv(READ_BYTES)
                if not data:
                    raise ConnectionError(f"the server closed the connection of {sender.address}; see its log")
                sender.take(data, time.monotonic())


def main() -> None:
    """Sign, connect, say so, wait for a line, send."""
    fields = json.loads(sys.stdin.readline())
    fields["devices"] = [tuple(device) for device in fields["devices"]]
    crowd = Crowd(Plan(**fields))
    crowd.connect()
    size = sum(len(sender.packets[0]) for sender in crowd.senders) // len(crowd.senders)
    print(json.dumps({"ready": True, "packet_bytes": size}), flush=True)
    sys.stdin.readline()
    print(json.dumps(crowd.send()), flush=True)


if __name__ == "__main__":
    main()
