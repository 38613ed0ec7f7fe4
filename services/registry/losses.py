"""What devices gave up, as they tell it in letters `losses`: counted, the newest of it kept by name, and announced."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue
from pydantic import BaseModel, Field, ValidationError

from schemas.courier import Loss, Losses
from schemas.ids import Address
from services.kit.api.registry import DeviceLosses, LossTotals
from services.kit.devices import device_key
from services.kit.intake import Arrival
from services.registry.metrics import GIVEN_UP
from services.registry.store import ConflictError

log = structlog.get_logger()

SHOWN_RANGES = 8
SHOWN_NAMES = 16
"""Of a range; all names are in the announcement, and in the letter in IN."""
KNOWN_REPORTS = 64
"""More than a device lets wait at a time, so that a letter that is read twice counts once."""

Announce = Callable[[str, BaseModel, str], Awaitable[None]]
"""Event, data and an id that is the same in a repetition."""


class LossRecord(LossTotals):
    """A device's entry in bucket `losses`."""

    reports: list[str] = Field([], max_length=KNOWN_REPORTS)
    """Ids of the newest letters that are counted in."""


def counted(record: LossRecord, report: str, losses: Losses) -> LossRecord:
    """The record with one more report in it; the same if it is in already."""
    if report in record.reports:
        return record
    letters = dict(record.letters)
    for loss in losses.losses:
        letters[loss.reason] = letters.get(loss.reason, 0) + loss.letters
    maybe_arrived = sum(loss.letters for loss in losses.losses if loss.maybe_arrived)
    newest = [*losses.losses[::-1], *record.newest][:SHOWN_RANGES]
    return LossRecord(
        letters=letters,
        maybe_arrived=record.maybe_arrived + maybe_arrived,
        newest=[_shown(loss) for loss in newest],
        reports=[*record.reports, report][-KNOWN_REPORTS:],
    )


def _shown(loss: Loss) -> Loss:
    return loss.model_copy(update={"names": loss.names[:SHOWN_NAMES]})


class LossBook:
    """Bucket `losses`, which the registry alone writes."""

    def __init__(self, kv: KeyValue, announce: Announce) -> None:
        self._kv = kv
        self._announce = announce

    async def handle(self, arrival: Arrival) -> None:
        """Count one letter in, once, and announce it.

        Raises:
            ConflictError: if the entry changed meanwhile; read the letter again.
            nats.errors.Error: if JetStream does not answer.
        """
        address, report = arrival.address, arrival.letter.id
        losses: Losses = arrival.letter.data
        present, revision = await self._read(address)
        record = counted(present, report, losses)
        if record is not present:
            try:
                await self._kv.update(device_key(address), record.model_dump_json().encode(), last=revision)
            except KeyWrongLastSequenceError as error:
                raise ConflictError(
                    f"count losses of {address}: the entry changed meanwhile; the letter is read again"
                ) from error
            for loss in losses.losses:
                GIVEN_UP.labels(loss.reason, "maybe" if loss.maybe_arrived else "no").inc(loss.letters)
            lost = sum(loss.letters for loss in losses.losses)
            log.warning("device.losses", device=str(address), letters=lost, letter=report)
        event = DeviceLosses(fleet=address.fleet, device=address.device, letter=report, losses=losses.losses)
        await self._announce("device-losses", event, report)

    async def totals(self, address: Address) -> LossTotals | None:
        """What a device has told so far; None if it lost nothing."""
        record, revision = await self._read(address)
        return LossTotals.model_validate(record.model_dump()) if revision else None

    async def _read(self, address: Address) -> tuple[LossRecord, int]:
        try:
            entry = await self._kv.get(device_key(address))
        except KeyNotFoundError as error:
            return LossRecord(), (error.entry.revision or 0) if error.entry is not None else 0
        try:
            return LossRecord.model_validate_json(entry.value or b""), entry.revision or 0
        except ValidationError as error:
            # Somebody else wrote here; counting begins anew.
            log.error("losses.refused", device=str(address), error=str(error)[:200])
            return LossRecord(), entry.revision or 0
