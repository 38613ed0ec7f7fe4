"""The devices as placement sees them: asked of the registry, kept for a moment, joined with what tasks have shown."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Protocol

import structlog

from schemas.ids import Address
from services.kit.api.registry import DeviceView
from services.kit.bus import Bus
from services.kit.devices import DeviceBook
from services.kit.fleet import list_devices
from services.scheduler.scoring import Node
from services.scheduler.store import TaskStore

log = structlog.get_logger()

CACHE_S = 1.0
ASK_TIMEOUT_S = 5.0


class Fleet(Protocol):
    """Where the devices' readings come from."""

    async def views(self) -> list[DeviceView]:
        """Every device, with its last heartbeat.

        Raises:
            PlatformError: if the registry does not answer.
        """


class RegistryFleet:
    """Asks the registry, at most once per `CACHE_S`; askers at the same time share one request."""

    def __init__(self, bus: Bus, book: DeviceBook) -> None:
        self._bus = bus
        self._book = book
        self._views: list[DeviceView] = []
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def views(self) -> list[DeviceView]:
        """Every device; standing is as the book has it, which hears of a revocation at once."""
        async with self._reading:
            if time.monotonic() - self._read_at > CACHE_S:
                self._views = await list_devices(self._bus, timeout_s=ASK_TIMEOUT_S)
                self._read_at = time.monotonic()
        return [self._standing(view) for view in self._views]

    def _standing(self, view: DeviceView) -> DeviceView:
        record = self._book.get(Address(view.fleet, view.device))
        if record is None or record.standing == view.standing:
            return view
        return view.model_copy(update={"standing": record.standing})


def nodes(views: list[DeviceView], store: TaskStore) -> list[Node]:
    """Join the readings with the leases and the record of each device."""
    found = []
    for view in views:
        address = Address(view.fleet, view.device)
        found.append(replace(Node(view), track=store.tracks.get(address), running=store.running[address]))
    return found
