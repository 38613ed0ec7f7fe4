"""What happens to a device is announced at least once: its record owes the event until EVENTS has it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from nats.errors import Error as NatsError
from pydantic import BaseModel

from schemas.ids import Address
from services.kit.api.registry import DeviceFact, QuarantineFact
from services.kit.devices import DeviceRecord
from services.registry.store import ConflictError, Devices

log = structlog.get_logger()

ATTEMPTS = 5
"""At a record that others change at the same time."""
Announce = Callable[[str, BaseModel, str], Awaitable[None]]
"""Event, data and an id that is the same in a repetition."""


def fact_of(record: DeviceRecord) -> tuple[str, BaseModel, str] | None:
    """The event that a record owes, its data and its id, the same however often it is told."""
    fleet, device = record.fleet, record.device
    if record.owed is None:
        return None
    if record.owed == "device-revoked":
        data: BaseModel = DeviceFact(fleet=fleet, device=device, enrol_id=record.enrol_id)
        at = record.revoked_at
    else:
        data = QuarantineFact(fleet=fleet, device=device, quarantine=record.quarantine)
        at = record.quarantine.at if record.quarantine is not None else record.released_at
    return record.owed, data, f"{fleet}-{device}-{at}"


class Facts:
    """Tells what records owe: after the change and, if the registry died there or EVENTS did not answer, later."""

    def __init__(self, devices: Devices, announce: Announce) -> None:
        """Before `devices` follows its bucket."""
        self._devices = devices
        self._announce = announce
        self._owing: set[Address] = set()
        devices.on_change(self._note)

    async def settle(self, address: Address) -> None:
        """Tell what a device's record owes; done before its standing is changed again.

        Raises:
            ConflictError: if others change it all the time.
            nats.errors.Error, TimeoutError: if JetStream does not answer.
        """
        for attempt in range(ATTEMPTS):
            stored = self._devices.get(address)
            fact = fact_of(stored.record) if stored is not None else None
            if stored is None or fact is None:
                return
            await self._announce(*fact)
            try:
                await self._devices.write(stored.record.model_copy(update={"owed": None}), stored.revision)
            except ConflictError:
                if attempt == ATTEMPTS - 1:
                    raise

    async def turn(self) -> None:
        """Tell what is owed; what cannot be told now is told at the next turn."""
        for address in list(self._owing):
            await self.tell(address)

    async def tell(self, address: Address) -> None:
        """Tell what one device's record owes, now or at the next turn."""
        try:
            await self.settle(address)
        except (NatsError, TimeoutError, ConflictError) as error:
            log.warning("fact.not_told", device=str(address), error=repr(error))

    def _note(self, record: DeviceRecord) -> None:
        if record.owed is None:
            self._owing.discard(record.address)
        else:
            self._owing.add(record.address)
