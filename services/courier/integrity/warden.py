"""Takes a suspicion of a clone to the registry, and keeps the device's letters out until it is decided."""

from __future__ import annotations

import asyncio
import base64
from datetime import datetime

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from schemas.ids import Address
from services.courier import metrics
from services.courier.integrity.clones import CloneWatch, Suspicion
from services.courier.up.chain import MESSAGE_ID, WAY
from services.courier.up.ordering import parse_message_id
from services.kit import rpc
from services.kit.api.registry import QuarantineRequest
from services.kit.bus import Bus
from services.kit.devices import DeviceBook
from services.kit.errors import PlatformError, UnreachableError
from services.kit.streams import IN

log = structlog.get_logger()

MAX_PENDING = 256
"""Suspicions at a time; the letters of further ones are not taken, and so come again."""
RETRY_S = 1.0
RECORD_WAIT_S = 10.0
_TIME = "Nats-Time-Stamp"


class Warden:
    """One suspicion at a time. The registry decides; it verifies the letters itself."""

    def __init__(self, bus: Bus, book: DeviceBook, watch: CloneWatch) -> None:
        self._bus = bus
        self._book = book
        self._watch = watch
        self._pending: dict[Address, Suspicion] = {}
        self._kick = asyncio.Event()
        self._changed = asyncio.Event()
        book.on_change(lambda _: self._changed.set())

    def suspends(self, address: Address) -> bool:
        """Whether a device's letters are not to be taken for now."""
        return address in self._pending

    def suspect(self, suspicion: Suspicion) -> None:
        """Have it looked into."""
        metrics.CLONES.labels(suspicion.proof).inc()
        log.error(
            "device.two_bodies", device=str(suspicion.address), proof=suspicion.proof, epochs=list(suspicion.epochs)
        )
        if len(self._pending) < MAX_PENDING:
            self._pending.setdefault(suspicion.address, suspicion)
            self._kick.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            await self._kick.wait()
            self._kick.clear()
            while self._pending:
                suspicion = next(iter(self._pending.values()))
                try:
                    await self._settle(suspicion)
                except (UnreachableError, NatsError, TimeoutError) as error:
                    log.warning("quarantine.not_asked", device=str(suspicion.address), error=repr(error))
                    await asyncio.sleep(RETRY_S)
                    continue
                except PlatformError as error:
                    log.error("quarantine.refused", device=str(suspicion.address), error=str(error))
                    self._watch.dismiss(suspicion)
                del self._pending[suspicion.address]

    async def _settle(self, suspicion: Suspicion) -> None:
        record = self._book.get(suspicion.address)
        if record is None or record.standing != "enrolled":
            return
        other = suspicion.other or await self._find(suspicion, record.released_at or 0.0)
        if other is None and suspicion.proof == "two_letters":
            # IN no longer holds it, it was carried, or it is from before an operator's release.
            log.warning("clone.not_proven", device=str(suspicion.address), letter=suspicion.letter.letter_id)
            self._watch.dismiss(suspicion)
            return
        letters = [suspicion.letter.envelope, *([other] if other is not None else [])]
        request = QuarantineRequest(
            fleet=suspicion.address.fleet,
            device=suspicion.address.device,
            proof=suspicion.proof,
            letters=[base64.b64encode(raw).decode() for raw in letters],
            epochs=list(suspicion.epochs),
        )
        await rpc.call(self._bus, "registry", "quarantine", request)
        await self._noted(suspicion.address)

    async def _noted(self, address: Address) -> None:
        try:
            async with asyncio.timeout(RECORD_WAIT_S):
                while (record := self._book.get(address)) is not None and record.standing == "enrolled":
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise UnreachableError(f"wait for the new record of {address}: not there") from error

    async def _find(self, suspicion: Suspicion, released_at: float) -> bytes | None:
        """A letter of the device in IN that came from itself, after the last release."""
        for place in suspicion.places:
            if not place:
                continue
            try:
                found = await self._bus.js.get_msg(IN.name, seq=place, direct=True)
            except NotFoundError:
                continue
            headers = found.headers or {}
            named = parse_message_id(headers.get(MESSAGE_ID, ""))
            ours = named is not None and Address(named[0].fleet, named[0].device) == suspicion.address
            at = datetime.fromisoformat(headers[_TIME]).timestamp() if _TIME in headers else 0.0
            if ours and headers.get(WAY) is None and at > released_at and found.data:
                return bytes(found.data)
        return None
