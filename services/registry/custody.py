"""Verbs for devices that are not to be believed, or whose letters were lost: quarantine, release, recall."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import structlog
from ulid import ULID

from schemas.events import LANES
from schemas.ids import Address
from schemas.registry import Recall
from services.kit import rpc
from services.kit.api.courier import Lowered, LowerRequest
from services.kit.api.registry import (
    DeviceRequest,
    QuarantineRequest,
    RecallRequest,
    RecallView,
)
from services.kit.bus import Bus
from services.kit.devices import DeviceRecord
from services.kit.errors import NotFoundError, RefusedError
from services.kit.mailbox import Draft, Mailbox
from services.registry.clones import judge, release
from services.registry.facts import ATTEMPTS, Facts
from services.registry.metrics import QUARANTINED
from services.registry.store import ConflictError, Devices, Stored

log = structlog.get_logger()

RECALL_LIFE = timedelta(days=7)
LOWER_TIMEOUT_S = 60.0
"""The courier looks through what IN holds of the device."""


class Custody:
    """Handlers of requests."""

    def __init__(
        self,
        bus: Bus,
        *,
        devices: Devices,
        mailbox: Mailbox,
        facts: Facts,
        view: Callable[[Address], dict[str, Any]],
        platform: str,
        now: Callable[[], datetime],
    ) -> None:
        self._bus = bus
        self._devices = devices
        self._mailbox = mailbox
        self._facts = facts
        self._view = view
        self._platform = platform
        self._now = now

    def serve(self, bus: Bus) -> None:
        """Answer, once the service starts."""
        rpc.serve(bus, "registry", "quarantine", QuarantineRequest, self.quarantine)
        rpc.serve(bus, "registry", "release", DeviceRequest, self.release)
        rpc.serve(bus, "registry", "recall", RecallRequest, self.recall)

    async def quarantine(self, request: QuarantineRequest) -> dict[str, Any]:
        """Take no more letters of a device that two bodies speak for, until an operator decides."""
        address = Address(request.fleet, request.device)
        try:
            envelopes = [base64.b64decode(text, validate=True) for text in request.letters]
        except binascii.Error as error:
            raise RefusedError(f"put {address} into quarantine: a letter is not base64", code="unproven") from error

        def change(record: DeviceRecord) -> DeviceRecord:
            if record.standing != "enrolled":
                return record
            return judge(
                record, self._platform, request.proof, envelopes, list(request.epochs), self._now().timestamp()
            )

        before, stored = await self._write(address, change)
        record = stored.record
        if record is not before:
            QUARANTINED.inc()
            log.error("device.quarantined", device=str(address), why=record.quarantine and record.quarantine.message)
            await self._facts.tell(address)
        return self._view(address)

    async def release(self, request: DeviceRequest) -> dict[str, Any]:
        """Take the letters of a device again: the other body is gone."""
        address = Address(request.fleet, request.device)
        await self._write(address, lambda record: release(record, self._now().timestamp()))
        log.warning("device.released", device=str(address))
        await self._facts.tell(address)
        return self._view(address)

    async def recall(self, request: RecallRequest) -> dict[str, Any]:
        """Have a device send again what it keeps and IN does not hold."""
        address = Address(request.fleet, request.device)
        self._find(address)
        question = LowerRequest(
            fleet=request.fleet,
            device=request.device,
            lanes=[request.lane] if request.lane is not None else list(LANES),
            first=request.first,
            force=request.force,
        )
        answer = await rpc.call(self._bus, "courier", "lower", question, timeout_s=LOWER_TIMEOUT_S)
        lowered = Lowered.model_validate(answer)
        letters = [await self._post(address, lowered.epoch, lane.lane, lane.lowered_to + 1) for lane in lowered.lanes]
        log.warning("letters.recalled", device=str(address), lanes={x.lane: x.lowered_to for x in lowered.lanes})
        view = RecallView(
            fleet=request.fleet, device=request.device, epoch=lowered.epoch, lanes=lowered.lanes, letters=letters
        )
        return view.model_dump(mode="json")

    async def _post(self, address: Address, epoch: str, lane: str, first: int) -> str:
        now = self._now()
        letter_id = str(ULID.from_datetime(now))
        draft = Draft(
            kind="recall",
            address=address,
            data=Recall.model_validate({"epoch": epoch, "lane": lane, "from": first}),
            letter_id=letter_id,
            slot=letter_id,
            revision=self._find(address).revision,
            expires=now + RECALL_LIFE,
        )
        await self._mailbox.post(draft, now)
        return letter_id

    async def _write(
        self, address: Address, change: Callable[[DeviceRecord], DeviceRecord]
    ) -> tuple[DeviceRecord, Stored]:
        """Change a record, whoever else changes it meanwhile; the record before, and what is stored now."""
        for attempt in range(ATTEMPTS):
            await self._facts.settle(address)
            stored = self._find(address)
            record = change(stored.record)
            if record is stored.record:
                return record, stored
            try:
                return stored.record, await self._devices.write(record, stored.revision)
            except ConflictError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _find(self, address: Address) -> Stored:
        stored = self._devices.get(address)
        if stored is None:
            raise NotFoundError(f"find device {address}: nothing of that name is enrolled; see `causeway device list`")
        return stored
