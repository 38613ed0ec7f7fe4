"""Presence from the table into bucket `devices`, where the other services see it: written only when it changes."""

from __future__ import annotations

import asyncio

import structlog
from nats.errors import Error as NatsError

from schemas.ids import Address
from services.registry.store import ConflictError, Devices
from services.registry.table import Table
from services.registry.telemetry import Telemetry

log = structlog.get_logger()


class Presence:
    """Looks for silence, and writes down who came and who went."""

    def __init__(
        self, table: Table, telemetry: Telemetry, devices: Devices, *, silence_s: float, in_flight: int
    ) -> None:
        self._table = table
        self._telemetry = telemetry
        self._devices = devices
        self._silence_s = silence_s
        self._in_flight = in_flight

    async def turn(self) -> None:
        """One round; what could not be written is written in the next one."""
        horizon = self._telemetry.horizon()
        if horizon is None:
            return
        silent = self._table.sweep(horizon, self._silence_s)
        if silent:
            log.info("devices.silent", count=silent, silence_s=self._silence_s)
        while flips := self._table.take_flips(self._in_flight):
            written = await asyncio.gather(*(self._write(address) for address in flips))
            if not all(written):
                return

    async def _write(self, address: Address) -> bool:
        stored = self._devices.get(address)
        online = self._table.sight(address).online
        if stored is None or stored.record.standing != "enrolled" or stored.record.online == online:
            return True
        try:
            await self._devices.write(stored.record.model_copy(update={"online": online}), stored.revision)
        except (NatsError, TimeoutError, ConflictError) as error:
            self._table.put_back(address)
            log.warning("presence.retried", device=str(address), error=repr(error))
            return False
        return True
