"""The way down: reads OUT, hands letters to devices until they say `got`, deletes what they hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Sequence

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from schemas.errors import ContractError
from schemas.ids import Address
from schemas.topics import Channel, Topic, parse_out
from services.courier import metrics
from services.courier.down.mailboxes import Limits, Mailboxes, Waiting
from services.courier.settings import CourierSettings
from services.kit.bus import Bus
from services.kit.errors import PlatformError
from services.kit.mailbox import EXPIRES, LETTER_ID
from services.kit.pipeline import Pipeline, PipelineError, Request
from services.kit.puller import Puller, PullError, open_reader, scan, sequence_of, stored_s
from services.kit.service import utc_now
from services.kit.streams import OUT

log = structlog.get_logger()

SEND_BATCH = 64
DELETE_BATCH = 256
PULL_WAIT_S = 5.0
RETRY_S = 0.25
ATTEMPTS_AFTER_SCAN = 2
"""A letter found at start was tried before; its device says hello when it comes."""
_GET = f"$JS.API.DIRECT.GET.{OUT.name}"
_DELETE = f"$JS.API.STREAM.MSG.DELETE.{OUT.name}"


class Postman:
    """Works while this courier is active."""

    def __init__(self, bus: Bus, pipeline: Pipeline, settings: CourierSettings) -> None:
        self._bus = bus
        self._pipeline = pipeline
        self._limits = Limits(
            settings.mailbox_letters,
            settings.mailbox_window,
            settings.resend_first_s,
            settings.resend_limit_s,
            settings.resend_attempts,
        )
        self._boxes = Mailboxes(self._limits)
        self._fresh: dict[int, bytes] = {}
        self._doomed: list[int] = []
        self._resting: set[Address] = set()
        self._kick = asyncio.Event()
        self._delete = asyncio.Event()
        self._puller: Puller | None = None
        self.loaded = asyncio.Event()

    def hello(self, address: Address, held: Iterable[str]) -> None:
        """A device is there and says which letters it holds."""
        self.got(address, held)
        self._boxes.hello(address, _now())
        self._kick.set()

    def got(self, address: Address, ids: Iterable[str]) -> None:
        """A device holds these letters on disk."""
        if address in self._resting:
            return
        held = self._boxes.got(address, ids, _now())
        if held:
            metrics.GOT.inc(len(held))
            self._doom(held)
        self._kick.set()

    def rest(self, address: Address, *, resting: bool) -> None:
        """Keep a device's letters for as long as two bodies might ask for them."""
        if resting:
            self._resting.add(address)
        elif address in self._resting:
            self._resting.discard(address)
            self._boxes.hello(address, _now())
            self._kick.set()

    def waiting(self, address: Address) -> list[Waiting]:
        """Letters in a device's mailbox, oldest first."""
        return self._boxes.of(address)

    def owners(self) -> list[Address]:
        """Devices that letters wait for."""
        return self._boxes.owners()

    async def fetch(self, letters: Sequence[Waiting]) -> list[tuple[Waiting, bytes]]:
        """Letters with their envelopes; without those that were replaced meanwhile.

        Raises:
            PipelineError, PullError: if OUT does not answer.
        """
        answers = await self._pipeline.ask([Request(_GET, b'{"seq":%d}' % letter.sequence) for letter in letters])
        found = zip(letters, answers, strict=True)
        return [(letter, raw) for letter, answer in found if (raw := self._found(letter.sequence, answer))]

    def interrupt(self, why: str) -> None:
        """Read OUT anew, since a crash of the server undoes deletes."""
        if self._puller is not None:
            self._puller.interrupt(why)

    async def read(self) -> None:
        """Load OUT, then follow it; everything again when the stream or the connection was lost."""
        while True:
            try:
                last = await self._load()
                self.loaded.set()
                await self._follow(last)
            except (NatsError, TimeoutError, PlatformError) as error:
                log.warning("mailboxes.read_again", error=repr(error))
                await asyncio.sleep(RETRY_S)
            finally:
                await self._close_puller()

    async def send(self) -> None:
        """Hand out what is due."""
        while True:
            while due := self._boxes.due(_now(), SEND_BATCH):
                try:
                    await self._send(due)
                except (NatsError, TimeoutError, PlatformError) as error:
                    # Each is scheduled again already.
                    log.warning("letters.not_sent", letters=len(due), error=repr(error))
                    await asyncio.sleep(RETRY_S)
            self._kick.clear()
            wake = self._boxes.next_wake()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wake is None else max(0.0, wake - _now())):
                    await self._kick.wait()

    async def delete(self) -> None:
        """Delete from OUT what devices hold; by sequence, so that a newer letter of the slot stays."""
        while True:
            await self._delete.wait()
            self._delete.clear()
            # A new list means that OUT was read anew.
            while doomed := self._doomed:
                batch = doomed[:DELETE_BATCH]
                requests = [Request(_DELETE, json.dumps({"seq": n, "no_erase": True}).encode()) for n in batch]
                try:
                    # "Not found" is an answer as good as any: the letter is gone.
                    await self._pipeline.ask(requests)
                except (NatsError, PipelineError) as error:
                    log.warning("letters.not_deleted", letters=len(batch), error=repr(error))
                    await asyncio.sleep(RETRY_S)
                    continue
                del doomed[: len(batch)]

    async def expire(self) -> None:
        """Drop letters whose time is over."""
        over = self._boxes.expired(_now())
        if over:
            metrics.DROPPED.labels("expired").inc(len(over))
            self._doom(over)
        metrics.MAILBOX.set(len(self._boxes))

    async def _load(self) -> int:
        boxes, last = Mailboxes(self._limits), 0
        # Numbers of a restored OUT may name other letters.
        self._doomed = []
        self._fresh.clear()
        async for message in scan(self._bus, OUT.name, headers_only=True):
            last = sequence_of(message)
            self._put(boxes, message, attempts=ATTEMPTS_AFTER_SCAN)
        self._boxes = boxes
        self._kick.set()
        log.info("mailboxes.loaded", letters=len(boxes))
        return last

    async def _follow(self, last: int) -> None:
        self._puller = await open_reader(self._bus, OUT.name, last + 1)
        while True:
            for message in await self._puller.take(SEND_BATCH, PULL_WAIT_S):
                # The bytes are at hand, so the first sending needs no look-up.
                self._fresh[sequence_of(message)] = message.data
                self._put(self._boxes, message)
            self._kick.set()
            metrics.MAILBOX.set(len(self._boxes))
            while len(self._fresh) > SEND_BATCH:
                del self._fresh[next(iter(self._fresh))]

    def _put(self, boxes: Mailboxes, message: Msg, *, attempts: int | None = None) -> None:
        headers = message.headers or {}
        try:
            address, kind, slot = parse_out(message.subject)
            expires = float(headers.get(EXPIRES) or stored_s(message) + OUT.max_age_s)
        except (ContractError, ValueError) as error:
            log.error("letter.unreadable", subject=message.subject, error=str(error))
            return
        letter = Waiting(sequence_of(message), address, kind, slot, headers.get(LETTER_ID, ""), expires)
        dropped = boxes.put(letter, _now(), attempts=attempts)
        if dropped:
            metrics.DROPPED.labels("overflow").inc(len(dropped))
            log.warning("mailbox.overflow", device=str(address), dropped=len(dropped))
            self._doom(dropped)

    async def _send(self, due: list[Waiting]) -> None:
        due = [letter for letter in due if letter.address not in self._resting]
        bodies = {letter.sequence: self._fresh.pop(letter.sequence, None) for letter in due}
        missing = [sequence for sequence, body in bodies.items() if body is None]
        answers = await self._pipeline.ask([Request(_GET, b'{"seq":%d}' % sequence) for sequence in missing])
        for sequence, answer in zip(missing, answers, strict=True):
            bodies[sequence] = self._found(sequence, answer)
        for letter in due:
            body = bodies[letter.sequence]
            if body:
                await self._bus.nc.publish(Topic(letter.address, Channel.DOWN, letter.kind).subject, body)
                metrics.SENT.labels(letter.kind).inc()

    def _found(self, sequence: int, answer: Msg) -> bytes | None:
        status = (answer.headers or {}).get("Status")
        if status == "404":
            # Replaced by a newer letter of its slot, which the tail brings.
            self._boxes.remove(sequence)
            return None
        if status is not None:
            raise PullError(f"get letter {sequence} of OUT: the server answered {status}")
        return answer.data

    def _doom(self, letters: Iterable[Waiting]) -> None:
        self._doomed += [letter.sequence for letter in letters]
        self._delete.set()

    async def _close_puller(self) -> None:
        puller, self._puller = self._puller, None
        if puller is not None:
            with contextlib.suppress(NatsError):
                await puller.close()


def _now() -> float:
    # One clock for expiry and schedule; a jump only sends early or late.
    return utc_now().timestamp()
