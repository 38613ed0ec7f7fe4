"""Marks that IN no longer bears out are lowered, so that the device's letters are taken once more.

A mark is never lowered below what IN holds, since that would be stored twice; unless the operator insists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from schemas.events import Lane
from schemas.ids import Address
from schemas.topics import in_of
from services.courier.receipts.receipts import Receipts
from services.courier.up.chain import MESSAGE_ID
from services.courier.up.errands import Desk, Errands
from services.courier.up.marks import Marks
from services.courier.up.ordering import LaneKey, parse_message_id
from services.kit import rpc
from services.kit.api.courier import Lowered, LowerRequest
from services.kit.api.registry import RecalledLane
from services.kit.bus import Bus
from services.kit.errors import NotFoundError
from services.kit.puller import scan
from services.kit.streams import IN

log = structlog.get_logger()


def floor_of_recall(first: int, held_to: int, before: int, now: int, *, force: bool) -> int:
    """The mark that a lane gets; never higher than it is.

    Args:
        first: sequence from which letters are wanted again.
        held_to: the highest one that IN holds.
        before: the mark when IN was looked through.
        now: the mark at present.
        force: take again also what IN holds.
    """
    kept = first - 1
    if not force:
        kept = max(kept, held_to, now if now > before else 0)
    return min(now, kept)


class LowerVerb:
    """Handler of `lower`."""

    def __init__(self, bus: Bus, errands: Errands, receipts: Receipts) -> None:
        self._bus = bus
        self._errands = errands
        self._receipts = receipts

    async def serve(self) -> None:
        """Answer from now on."""
        await rpc.serve_from_now(self._bus, "courier", "lower", LowerRequest, self.lower)

    async def lower(self, request: LowerRequest) -> dict[str, Any]:
        """Lower the marks of a device's present epoch."""
        address = Address(request.fleet, request.device)

        async def look(desk: Desk) -> tuple[str, dict[LaneKey, int]]:
            epoch = present_epoch(desk.marks, address)
            keys = [LaneKey(address.fleet, address.device, epoch, lane) for lane in request.lanes]
            return epoch, {key: desk.marks.flat.get(key, 0) for key in keys}

        epoch, before = await self._errands.ask(look)
        held = await self._held(address, before, request.first)

        async def change(desk: Desk) -> list[RecalledLane]:
            lanes: list[RecalledLane] = []
            for key, mark in before.items():
                now = desk.marks.flat.get(key, 0)
                target = floor_of_recall(request.first, held[key], mark, now, force=request.force)
                desk.marks.lower(key, target)
                lane: Lane = key.lane  # type: ignore[assignment]
                lanes.append(RecalledLane(lane=lane, mark=now, lowered_to=target, held_to=held[key]))
            await desk.save()
            return lanes

        lanes = await self._errands.ask(change)
        log.warning("marks.lowered", device=str(address), epoch=epoch, lanes={x.lane: x.lowered_to for x in lanes})
        await self._receipts.ask(address, epoch)
        return Lowered(epoch=epoch, lanes=lanes).model_dump(mode="json")

    async def _held(self, address: Address, lanes: Mapping[LaneKey, int], first: int) -> dict[LaneKey, int]:
        """Highest letter from `first` on that IN holds of each lane; 0 if none."""
        held = dict.fromkeys(lanes, 0)
        async for message in scan(self._bus, IN.name, headers_only=True, subject=in_of(address)):
            found = parse_message_id((message.headers or {}).get(MESSAGE_ID, ""))
            if found is not None and found[0] in held and found[1] >= first:
                held[found[0]] = max(held[found[0]], found[1])
        return held


def present_epoch(marks: Marks, address: Address) -> str:
    """The epoch in which a device speaks now.

    Raises:
        NotFoundError: if it never spoke.
    """
    voice, epochs = marks.voice(address), marks.epochs(address)
    if voice is not None:
        return voice.epoch
    if not epochs:
        raise NotFoundError(f"lower the marks of {address}: no letter of it ever came")
    # By carriers alone: the epoch that was heard last, since a refused enrolment leaves one behind, too.
    return max(epochs, key=lambda epoch: max(marks.places(address, epoch), default=0))
