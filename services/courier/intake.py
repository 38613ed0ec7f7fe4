"""The way up: reads UP, verifies, orders, stores in IN, asks for receipts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from schemas.errors import ContractError
from schemas.ids import Address
from schemas.topics import Channel, Topic, fence_subject, in_subject, refused_subject
from services.courier import metrics
from services.courier.chain import Chain, Entry
from services.courier.lease import Lease
from services.courier.marks import Marks, SavedPoint
from services.courier.ordering import Ruling, Verdict, rule
from services.courier.pipeline import Pipeline, PipelineError
from services.courier.puller import Puller, PullError, stored_s
from services.courier.receipts import Receipts
from services.courier.sessions import Sessions
from services.courier.settings import CourierSettings
from services.courier.store import MarksStore
from services.courier.verifying import Opened, open_letter
from services.kit.bus import Bus
from services.kit.devices import DeviceBook
from services.kit.errors import UnreachableError
from services.kit.rejects import Turnstile
from services.kit.service import utc_now
from services.kit.streams import UP

log = structlog.get_logger()

DURABLE = "courier"
PULL_WAIT_S = 2.0
RETRY_S = 0.25
_BREATH = 32
"""Letters verified before others get their turn, about 6 ms."""


class Intake:
    """Works while this courier is active. `serving` is set once letters are taken."""

    def __init__(
        self,
        bus: Bus,
        pipeline: Pipeline,
        lease: Lease,
        *,
        book: DeviceBook,
        platform: str,
        receipts: Receipts,
        sessions: Sessions,
        turnstile: Turnstile,
        settings: CourierSettings,
    ) -> None:
        self._bus = bus
        self._lease = lease
        self._book = book
        self._platform = platform
        self._receipts = receipts
        self._sessions = sessions
        self._turnstile = turnstile
        self._settings = settings
        self._chain = Chain(pipeline, fence_subject())
        self._store = MarksStore(bus, pipeline)
        self._marks: Marks | None = None
        self._puller: Puller | None = None
        self._unsaved = 0
        self._saved_at = time.monotonic()
        self._doubted = False
        self.serving = asyncio.Event()

    def doubt(self) -> None:
        """The connection was lost: a restarted server may hold less of IN than it had acknowledged.

        Until IN was read again no receipt goes out, since it could promise letters that are gone.
        """
        self._doubted = True
        self._receipts.suspend()

    def interrupt(self, why: str) -> None:
        """The consumer may be gone."""
        if self._puller is not None:
            self._puller.interrupt(why)

    def touch(self, address: Address) -> None:
        """A device's session changed."""
        if self._marks is not None:
            self._marks.touch(address)

    async def run(self) -> None:
        """Take letters until the lease is lost.

        Raises:
            LeaseLostError: another courier is active.
        """
        while True:
            try:
                if self._doubted:
                    self._doubted = False
                    self._forget()
                if self._marks is None:
                    await self._restore()
                if self._puller is None:
                    self._puller = await self._attach()
                self.serving.set()
                await self._turn(self._puller)
            except PipelineError as error:
                log.warning("intake.recovering", error=str(error), err_code=error.err_code)
                self._forget()
                await self._recover()
            except (PullError, UnreachableError, NatsError, TimeoutError) as error:
                log.warning("intake.attaching_again", error=repr(error))
                await self._detach()
                await asyncio.sleep(RETRY_S)

    async def save(self) -> None:
        """Save the marks that changed.

        Raises:
            PipelineError: if not all is stored; what is saved must be read again before the next time.
        """
        marks = self._marks
        if marks is None:
            return
        changed = marks.take_changed(self._sessions)
        self._unsaved, self._saved_at = 0, time.monotonic()
        if not changed:
            return
        await self._store.save(changed, SavedPoint(sequence=self._chain.sequence, message_id=self._chain.message_id))

    async def _restore(self) -> None:
        marks, sessions = await self._store.restore(self._chain)
        self._sessions.remember(sessions)
        self._marks = marks
        await self.save()
        if not self._doubted:
            await self._receipts.resume(marks)

    def _forget(self) -> None:
        # What was in flight may or may not be stored; only IN knows.
        self._marks = None
        self._receipts.suspend()

    async def _recover(self) -> None:
        try:
            await self._lease.confirm()
        except (NatsError, TimeoutError) as error:
            log.warning("lease.not_confirmed", error=repr(error))
        await asyncio.sleep(RETRY_S)

    async def _attach(self) -> Puller:
        config = ConsumerConfig(
            durable_name=DURABLE, ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL, mem_storage=True
        )
        await self._bus.js.add_consumer(UP.name, config)
        puller = Puller(self._bus.nc, UP.name, DURABLE)
        await puller.open()
        return puller

    async def _detach(self) -> None:
        puller, self._puller = self._puller, None
        if puller is not None:
            try:
                await puller.close()
            except NatsError as error:
                log.debug("puller.not_closed", error=repr(error))

    async def _turn(self, puller: Puller) -> None:
        messages = await puller.take(self._settings.batch, PULL_WAIT_S)
        if messages:
            await self._take(messages)
        self._unsaved += len(messages)
        rested = time.monotonic() - self._saved_at
        if self._unsaved >= self._settings.snapshot_letters or rested >= self._settings.snapshot_interval_s:
            await self.save()

    async def _take(self, messages: Sequence[Msg]) -> None:
        letters: list[Opened] = []
        arrived: list[float] = []
        for index, message in enumerate(messages):
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
            try:
                letters.append(self._open(message))
                arrived.append(stored_s(message))
            except ContractError as error:
                await self._turnstile.refuse(message.subject, message.data, error)
        await self._admit(letters, arrived)

    def _open(self, message: Msg) -> Opened:
        letter = open_letter(message.data, message.subject, self._book, self._platform, utc_now())
        assert self._marks is not None
        epochs = self._marks.epochs(letter.address)
        if letter.stranger and letter.slip.key.epoch in epochs:
            # Only a device's own key may move the marks of its epochs.
            raise ContractError(
                f"enrol letter of {letter.address} by another key in an epoch of the device", reason="foreign_epoch"
            )
        if letter.slip.key.epoch in epochs[:-1]:
            metrics.OLD_EPOCH.inc()
            log.warning("letter.old_epoch", device=str(letter.address), epoch=letter.slip.key.epoch)
        return letter

    async def _admit(self, letters: Sequence[Opened], arrived: Sequence[float]) -> None:
        marks = self._marks
        assert marks is not None
        ruling = rule([letter.slip for letter in letters], marks.flat)
        admitted = [(x, at) for x, at, v in zip(letters, arrived, ruling.verdicts, strict=True) if v is Verdict.ADMIT]
        stored = await self._chain.append([_entry(letter) for letter, _ in admitted])
        # Only now: a receipt must never promise more than IN has acknowledged.
        marks.skip(ruling.gaps)
        now = time.time()
        for (letter, at), sequence in zip(admitted, stored, strict=True):
            marks.stored(letter.slip.key, letter.slip.sequence, sequence)
            metrics.STORED_S.observe(max(0.0, now - at))
            if letter.refusal is None:
                metrics.LETTERS.labels(letter.kind).inc()
            else:
                metrics.REFUSED.labels(letter.kind).inc()
                subject = Topic(letter.address, Channel.LETTER, letter.kind).subject
                await self._turnstile.refuse(subject, letter.envelope, letter.refusal)
        _count(ruling)
        owed = {
            (letter.address, letter.slip.key.epoch)
            for letter, verdict in zip(letters, ruling.verdicts, strict=True)
            if verdict is not Verdict.EARLY or letter.slip.key in ruling.marks
        }
        for address, epoch in owed:
            await self._receipts.ask(address, epoch)


def _entry(letter: Opened) -> Entry:
    name = letter.slip.key.message_id(letter.slip.sequence)
    if letter.refusal is None:
        return Entry(in_subject(letter.kind, letter.address), name, letter.envelope)
    return Entry(refused_subject(letter.address), name, letter.envelope, letter.refusal.reason)


def _count(ruling: Ruling) -> None:
    metrics.DUPLICATES.inc(ruling.verdicts.count(Verdict.DUPLICATE))
    metrics.EARLY.inc(ruling.verdicts.count(Verdict.EARLY))
    for gap in ruling.gaps:
        metrics.LOST.inc(gap.letters)
        log.warning(
            "letters.lost",
            device=f"{gap.key.fleet}/{gap.key.device}",
            lane=gap.key.lane,
            first=gap.first,
            last=gap.last,
        )
