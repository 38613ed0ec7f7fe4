"""Saving marks and finding out what IN holds: bucket `marks`, and a replay of IN's headers."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from nats.js.errors import NotFoundError
from pydantic import ValidationError
from ulid import ULID

from schemas.errors import TopicError
from schemas.ids import Address
from services.courier.up.chain import MESSAGE_ID, WAY, Chain, Entry
from services.courier.up.marks import InState, Marks, SavedDevice, SavedPoint, base
from services.courier.up.ordering import parse_message_id
from services.courier.up.verifying import is_voice
from services.kit.bus import Bus
from services.kit.devices import address_of
from services.kit.mailbox import LETTER_ID
from services.kit.pipeline import Pipeline
from services.kit.puller import PullError, scan, sequence_of, stored_s
from services.kit.streams import IN

log = structlog.get_logger()

POINT = "_point"
"""No identifier begins with an underscore, hence no device's key."""
_SUBJECT = "$KV.marks."
_STREAM = "KV_marks"
_SAVE_BATCH = 1_000


class MarksStore:
    """The durable side of `Marks`."""

    def __init__(self, bus: Bus, pipeline: Pipeline) -> None:
        self._bus = bus
        self._chain = Chain(pipeline, f"{_SUBJECT}_fence")

    async def restore(self, chain: Chain) -> tuple[Marks, dict[Address, str]]:
        """Fence both streams and read back what they hold up to the fence.

        Returns:
            The marks, and the sessions that were saved with them.

        Raises:
            PipelineError, PullError, nats.errors.Error: if the bus does not answer; call again.
        """
        await self._chain.fence()
        await chain.fence()
        saved, point = await self._load()
        begin = base(saved, point, await self._in_state(chain, point))
        if not begin.intact:
            log.warning("marks.read_anew", saved_devices=len(saved), point=point.sequence if point else None)
        replayed = await self._replay(begin.marks, begin.replay_from, chain.sequence)
        log.info("marks.restored", lanes=len(begin.marks.flat), replayed=replayed, intact=begin.intact)
        return begin.marks, {address: device.session for address, device in saved.items() if device.session}

    async def save(self, changed: Mapping[Address, SavedDevice], point: SavedPoint) -> None:
        """Store devices, then the point that makes them whole.

        Raises:
            PipelineError: if not all of it is stored; the old point still holds. Restore again, since another courier
                may have written.
        """
        entries = [
            _entry(f"{address.fleet}.{address.device}", device.model_dump_json()) for address, device in changed.items()
        ]
        entries.append(_entry(POINT, point.model_dump_json()))
        for start in range(0, len(entries), _SAVE_BATCH):
            await self._chain.append(entries[start : start + _SAVE_BATCH])

    async def _load(self) -> tuple[dict[Address, SavedDevice], SavedPoint | None]:
        saved: dict[Address, SavedDevice] = {}
        point: SavedPoint | None = None
        whole = True
        async for message in scan(self._bus, _STREAM):
            key = message.subject.removeprefix(_SUBJECT)
            try:
                if key == POINT:
                    point = SavedPoint.model_validate_json(message.data)
                elif not key.startswith("_"):
                    address = address_of(key)
                    saved[address] = SavedDevice(epochs={})
                    saved[address] = SavedDevice.model_validate_json(message.data)
            except (TopicError, ValidationError) as error:
                log.error("marks.unreadable", key=key[:128], error=str(error)[:400])
                whole = whole and isinstance(error, TopicError)
        # What a foreign value replaced is read from IN again, as all of it that is not whole.
        return saved, point if whole else None

    async def _in_state(self, chain: Chain, point: SavedPoint | None) -> InState:
        state = (await self._bus.js.stream_info(IN.name)).state
        name = None
        if point is not None and state.first_seq <= point.sequence <= chain.sequence:
            try:
                found = await self._bus.js.get_msg(IN.name, seq=point.sequence, direct=True)
                name = (found.headers or {}).get(MESSAGE_ID)
            except NotFoundError:
                log.warning("marks.point_gone", sequence=point.sequence)
        # Without the fence itself: a mark must not be borne out by what stands in a lost letter's place.
        return InState(state.first_seq, chain.sequence - 1, name)

    async def _replay(self, marks: Marks, start: int, last: int) -> int:
        seen, count = start - 1, 0
        async for message in scan(self._bus, IN.name, start, headers_only=True):
            seen = sequence_of(message)
            headers = message.headers or {}
            found = parse_message_id(headers.get(MESSAGE_ID, ""))
            if found is not None:
                spoke = stored_s(message) if is_voice(message.subject, headers.get(WAY)) else None
                marks.stored(*found, seen, headers.get(LETTER_ID), spoke)
                count += 1
        if seen < last:
            raise PullError(f"replay IN from {start} to {last}: it ended at {seen}; it is read again")
        return count


def _entry(key: str, value: str) -> Entry:
    return Entry(f"{_SUBJECT}{key}", f"marks:{ULID()}", value.encode())
