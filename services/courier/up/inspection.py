"""Opens letters in a thread of its own, so that the next batch is verified while the last one is stored.

Verifying takes most of the time, and libsodium lets go of Python's lock for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from nats.aio.msg import Msg

from schemas.errors import ContractError
from schemas.topics import parse_subject
from services.courier.up.verifying import Devices, Opened, open_letter
from services.kit.devices import DeviceRecord
from services.kit.service import utc_now


@dataclass(frozen=True, slots=True)
class Inspected:
    """A message, and the letter in it or why there is none.

    Attributes:
        record: of the sender, as it was judged by.
    """

    message: Msg
    found: Opened | ContractError
    record: DeviceRecord | None


class Inspector:
    """One batch at a time, in order."""

    def __init__(self, devices: Devices, platform: str) -> None:
        self._devices = devices
        self._platform = platform
        self._thread = ThreadPoolExecutor(1, "inspection")

    async def inspect(self, messages: Sequence[Msg]) -> list[Inspected]:
        """Verify each; those that are refused are told apart, none stops the others."""
        if not messages:
            return []
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._inspect, messages, utc_now())

    def present(self, one: Inspected) -> Opened | ContractError:
        """What was found; looked at anew if the sender was revoked, or quarantined, or came to be known since."""
        return one.found if self._record(one.message) is one.record else self._open(one.message, utc_now())

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _inspect(self, messages: Sequence[Msg], now: datetime) -> list[Inspected]:
        found = []
        for message in messages:
            # Before the letter, so that a change in between is noticed.
            record = self._record(message)
            found.append(Inspected(message, self._open(message, now), record))
        return found

    def _record(self, message: Msg) -> DeviceRecord | None:
        try:
            return self._devices.get(parse_subject(message.subject).address)
        except ContractError:
            return None

    def _open(self, message: Msg, now: datetime) -> Opened | ContractError:
        try:
            return open_letter(message.data, message.subject, self._devices, self._platform, now)
        except ContractError as error:
            return error
