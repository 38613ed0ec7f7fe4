"""State messages up: unsigned, at QoS 0. Of what cannot be sent now the newest of its kind waits; of got, all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from ulid import ULID

from edge_runtime.letters.pigeonholes import Pigeonholes
from edge_runtime.link.link import Link, Urgency
from schemas.courier import Got
from schemas.events import Message
from schemas.ids import Address
from schemas.letters import write_state
from schemas.topics import Channel, Topic

GOT_DELAY_S = 0.02
MAX_PENDING_GOTS = 4_096
"""What comes by carrier is answered over the link once there is one."""
MAX_GOT_IDS = 100
"""As many as fit into a state message of 4 KiB."""


class StateDesk:
    """Of one line.

    Args:
        link: to send by.
        address: of this device.
        now: the device's time.
        open_: whether the courier has answered, so that more than hello may be sent.
    """

    def __init__(
        self, link: Link, address: Callable[[], Address], now: Callable[[], datetime], open_: Callable[[], bool]
    ) -> None:
        self._link = link
        self._address = address
        self._now = now
        self._open = open_
        self._holes = Pigeonholes()
        self._gots: dict[str, None] = {}
        self._flushing: asyncio.TimerHandle | None = None

    def send(self, kind: str, data: Message, key: str = "") -> bool:
        """Send, or keep until it can be sent or a newer one takes its place; False if it is kept.

        Args:
            kind: of the message.
            data: its content.
            key: messages of one kind with different keys do not replace each other.

        Raises:
            MessageError: `oversized` above 4 KiB.
        """
        raw = self._write(kind, data)
        if self._may_send() and self._put(kind, raw):
            return True
        self._holes.put(kind, key, raw)
        return False

    def send_now(self, kind: str, data: Message) -> bool:
        """Send whether or not the courier has answered; False if that is not possible. Raises as `send`."""
        return self._put(kind, self._write(kind, data))

    def got(self, letter_id: str) -> None:
        """A letter down is on disk; the courier is told soon, together with others."""
        self._gots[letter_id] = None
        if len(self._gots) > MAX_PENDING_GOTS:
            # The courier sends that letter again, and is answered again.
            del self._gots[next(iter(self._gots))]
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(GOT_DELAY_S, self._flush_gots)

    def new_session(self) -> None:
        """What names the session before is worth nothing now; the answer to hello brings a new heartbeat."""
        self._holes.drop("heartbeat")

    def flush(self) -> None:
        """Send what waits, as far as it can be sent."""
        self._flush_gots()
        self._holes.empty(lambda kind, raw: self._may_send() and self._put(kind, raw))

    def pending_gots(self) -> list[str]:
        """Letters down that are dealt with, of which the platform has not been told over the link."""
        return list(self._gots)

    def _flush_gots(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        while self._gots and self._may_send():
            ids = list(self._gots)[:MAX_GOT_IDS]
            if not self.send_now("got", Got(ids=ids)):
                return
            for letter_id in ids:
                del self._gots[letter_id]

    def _may_send(self) -> bool:
        return self._open() and self._link.room(Urgency.SIGNAL)

    def _write(self, kind: str, data: Message) -> bytes:
        return write_state(kind, data, event_id=str(ULID()), address=self._address(), time=self._now())

    def _put(self, kind: str, raw: bytes) -> bool:
        return self._link.publish(Topic(self._address(), Channel.STATE, kind).mqtt, raw, Urgency.SIGNAL)
