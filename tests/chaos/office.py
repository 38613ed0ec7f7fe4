"""A service of the chaos: posts letters down and applies letters up, in the form of every service of the platform.

`python -m tests.chaos.office --state FOLDER`, with the scheduler's credentials and key. Its ledger says what it posted
and what it applied; it may be killed at any time.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nats.errors import Error as NatsError
from pydantic import BaseModel
from ulid import ULID

from schemas.ids import Address
from schemas.scheduler import Cancel, Task
from services.kit.devices import DeviceBook
from services.kit.intake import Arrival, Intake
from services.kit.mailbox import Draft, Mailbox
from services.kit.records import RegistryKeys
from services.kit.service import Service, main
from tests.chaos.ledger import Entry, Ledger
from tests.chaos.pace import Go

SERVICE = "scheduler"
CONFIG = "CHAOS_OFFICE"
LIFETIME = timedelta(hours=6)
DOWN, BOARD = "down", "board"
"""Lanes of its ledger: letters with a slot each, and those to one slot per device, where the newest wins."""
BOARD_EVERY = 10
TICK_S = 0.25
BURST = 200
RETRY_S = 0.2


class OfficeConfig(BaseModel):
    """What the office is told."""

    ledger: Path
    go: Path
    fleet: str
    devices: list[str]
    letters: int


class Office:
    """Two loops over one ledger."""

    def __init__(self, config: OfficeConfig, mailbox: Mailbox) -> None:
        self._config = config
        self._mailbox = mailbox
        self._ledger = Ledger(config.ledger)
        self._life = str(ULID())

    async def take(self, arrival: Arrival) -> None:
        """Apply a letter up, once by its id, as the kit asks of every handler."""
        output = arrival.letter.data.output
        entry = Entry(arrival.address.device, str(output["lane"]), int(output["number"]), arrival.letter.id)
        self._ledger.take(entry, self._life)

    async def post(self) -> None:
        """Post at the pace of the load, first of all what a crash left in doubt, under the same ids."""
        waiting = self._ledger.unhanded()
        numbers = {device: n for (device, lane), n in self._ledger.highest().items() if lane == DOWN}
        total, devices = self._config.letters, self._config.devices
        go = await Go.wait(self._config.go)
        while True:
            for entry in waiting:
                await self._post_one(entry)
            sent = sum(numbers.values())
            due = min(go.due(total, time.time()) - sent, BURST)
            waiting = self._number(numbers, [devices[n % len(devices)] for n in range(sent, sent + max(0, due))])
            if waiting:
                self._ledger.intend(waiting)
            await asyncio.sleep(TICK_S)

    @staticmethod
    def _number(numbers: dict[str, int], turns: list[str]) -> list[Entry]:
        """Letters to these devices, and now and then one to a device's board."""
        before, entries = dict(numbers), []
        for device in turns:
            numbers[device] = numbers.get(device, 0) + 1
            entries.append(Entry(device, DOWN, numbers[device], str(ULID())))
        # One at most of a batch: whatever is repeated after a crash is the newest of its slot.
        boards = [d for d in set(turns) if numbers[d] // BOARD_EVERY > before.get(d, 0) // BOARD_EVERY]
        return entries + [Entry(d, BOARD, numbers[d] // BOARD_EVERY, str(ULID())) for d in boards]

    async def _post_one(self, entry: Entry) -> None:
        now = datetime.now(UTC)
        address, expires = Address(self._config.fleet, entry.device), now + LIFETIME
        if entry.lane == BOARD:
            draft = Draft("cancel", address, Cancel(term=entry.number), entry.letter, BOARD, entry.number, expires)
        else:
            inputs: dict[str, int | str | float | bool] = {"number": entry.number}
            task = Task(task=entry.letter, term=1, kind="user", runner="chaos@1", inputs=inputs, deadline=expires)
            draft = Draft("task", address, task, entry.letter, entry.letter, entry.number, expires)
        while True:
            try:
                await self._mailbox.post(draft, now)
                return
            except (NatsError, TimeoutError):
                # The same draft again, as the mailbox says.
                await asyncio.sleep(RETRY_S)


def _config() -> OfficeConfig:
    return OfficeConfig.model_validate_json(Path(os.environ[CONFIG]).read_bytes())


async def wire(service: Service) -> None:
    """As every service does."""
    config = _config()
    book = DeviceBook(RegistryKeys(service.state).open_record)
    await book.follow(service.bus)
    office = Office(config, service.mailbox())
    platform = service.settings.platform
    service.spawn(Intake(service.bus, SERVICE, platform, "result", office.take, book).run(), "results")
    service.spawn(office.post(), "post")


if __name__ == "__main__":
    main(SERVICE, wire)
