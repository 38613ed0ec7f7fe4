"""The way up: reads UP, verifies, orders, stores in IN, asks for receipts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import structlog
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from schemas.errors import ContractError
from schemas.ids import Address
from schemas.topics import Channel, Topic, fence_subject, in_subject, refused_subject
from services.courier import metrics
from services.courier.integrity.wiring import Integrity
from services.courier.lease import Lease
from services.courier.premises import Premises
from services.courier.receipts.receipts import Receipts
from services.courier.receipts.sessions import Sessions
from services.courier.up.carried import CarriedLetters, Judged
from services.courier.up.chain import Chain, Entry
from services.courier.up.errands import Desk
from services.courier.up.inspection import Inspected, Inspector
from services.courier.up.marks import Marks, SavedPoint
from services.courier.up.marks_store import MarksStore
from services.courier.up.ordering import Ruling, Verdict, rule
from services.courier.up.pace import Pace, sender_of
from services.courier.up.verifying import ENROL, Opened, open_letter
from services.kit.errors import UnreachableError
from services.kit.pipeline import Pipeline, PipelineError
from services.kit.puller import Puller, PullError, open_consumer, stored_s
from services.kit.rejects import Turnstile
from services.kit.service import utc_now
from services.kit.streams import UP

log = structlog.get_logger()

DURABLE = "courier"
PULL_WAIT_S = 2.0
RETRY_S = 0.25
SUSPENDED = "suspended"
_BREATH = 32
"""Letters verified before others get their turn, about 6 ms."""


class Intake:
    """Works while this courier is active. `serving` is set once letters are taken."""

    def __init__(
        self,
        premises: Premises,
        pipeline: Pipeline,
        lease: Lease,
        *,
        receipts: Receipts,
        sessions: Sessions,
        turnstile: Turnstile,
        carried: CarriedLetters,
        integrity: Integrity,
    ) -> None:
        self._premises = premises
        self._lease = lease
        self._receipts = receipts
        self._sessions = sessions
        self._turnstile = turnstile
        self._carried = carried
        carried.on_put(self._nudge)
        self._errands, self._watch, self._warden = integrity.errands, integrity.watch, integrity.warden
        self._errands.on_put(self._nudge)
        self._pace = Pace(premises.settings.letters_per_minute)
        self._chain = Chain(pipeline, fence_subject())
        self._store = MarksStore(premises.bus, pipeline)
        self._marks: Marks | None = None
        self._puller: Puller | None = None
        self._inspector = Inspector(premises.book, premises.platform)
        self._ahead: asyncio.Task[list[Inspected]] | None = None
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

    def _nudge(self) -> None:
        if self._puller is not None:
            self._puller.nudge()

    def touch(self, address: Address) -> None:
        """A device's session changed."""
        if self._marks is not None:
            self._marks.touch(address)

    async def run(self) -> None:
        """Take letters until the lease is lost.

        Raises:
            LeaseLostError: another courier is active.
        """
        try:
            await self._serve()
        finally:
            await self._stop_reading()
            self._inspector.close()

    async def _serve(self) -> None:
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
                if self._carried.first() is not None or self._errands.first() is not None:
                    self._nudge()
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
        self._watch.forget()
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
        return await open_consumer(self._premises.bus, UP.name, config)

    async def _detach(self) -> None:
        await self._stop_reading()
        puller, self._puller = self._puller, None
        if puller is not None:
            await puller.close()

    async def _turn(self, puller: Puller) -> None:
        batch = await (self._ahead or self._read_ahead(puller))
        # Verified while this batch is stored.
        self._ahead = self._read_ahead(puller)
        if batch:
            await self._take(batch)
        # After those that came by themselves, and one bundle and one errand at a time.
        self._unsaved += len(batch) + await self._take_carried() + await self._run_errand()
        settings, rested = self._premises.settings, time.monotonic() - self._saved_at
        if self._unsaved >= settings.snapshot_letters or rested >= settings.snapshot_interval_s:
            await self.save()

    def _read_ahead(self, puller: Puller) -> asyncio.Task[list[Inspected]]:
        return asyncio.create_task(self._read(puller), name="read ahead")

    async def _read(self, puller: Puller) -> list[Inspected]:
        messages = []
        for message in await puller.take(self._premises.settings.batch, PULL_WAIT_S):
            if self._pace.admits(sender_of(message.subject), stored_s(message)):
                messages.append(message)
            else:
                metrics.PACED.inc()
        return await self._inspector.inspect(messages)

    async def _stop_reading(self) -> None:
        # What was read and not stored is sent again, as everything in UP may have to be.
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _take(self, batch: Sequence[Inspected]) -> None:
        letters: list[Opened] = []
        arrived: list[float] = []
        for one in batch:
            message = one.message
            try:
                letters.append(self._check(self._inspector.present(one)))
                arrived.append(stored_s(message))
            except ContractError as error:
                await self._turnstile.refuse(message.subject, message.data, error)
        await self._admit(letters, arrived)

    async def _take_carried(self) -> int:
        group = self._carried.first()
        if group is None:
            return 0
        letters: list[Opened] = []
        suspended = 0
        for index, carried in enumerate(group.letters):
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
            try:
                letters.append(self._open(carried.raw, carried.subject))
            except ContractError as error:
                suspended += error.reason == SUSPENDED
                await self._turnstile.refuse(carried.subject, carried.raw, error)
        # The group stays in its queue if this fails, and is tried again once IN was read.
        ruling = await self._admit(letters, [time.time()] * len(letters))
        verdicts = ruling.verdicts
        self._carried.judged(
            Judged(
                stored=verdicts.count(Verdict.ADMIT),
                duplicate=verdicts.count(Verdict.DUPLICATE),
                # Those of a suspended device are not judged yet either: it must send them again.
                early=verdicts.count(Verdict.EARLY) + suspended,
                refused=len(group.letters) - len(letters) - suspended,
            )
        )
        return len(group.letters)

    def _open(self, raw: bytes, subject: str) -> Opened:
        """A letter that a carrier or an operator brings: it may be old."""
        letter = open_letter(raw, subject, self._premises.book, self._premises.platform, utc_now())
        return self._check(replace(letter, carried=True))

    def _check(self, letter: Opened | ContractError) -> Opened:
        """What only the marks and the warden know of an opened letter."""
        if isinstance(letter, ContractError):
            raise letter
        assert self._marks is not None
        epochs = self._marks.epochs(letter.address)
        if letter.stranger and letter.slip.key.epoch in epochs:
            # Only a device's own key may move the marks of its epochs.
            raise ContractError(
                f"enrol letter of {letter.address} by another key in an epoch of the device", reason="foreign_epoch"
            )
        if self._warden.suspends(letter.address):
            raise ContractError(
                f"device {letter.address} seems to have two bodies: its letters wait for the registry's decision",
                reason=SUSPENDED,
            )
        return letter

    async def _admit(self, letters: Sequence[Opened], arrived: Sequence[float]) -> Ruling:
        marks = self._marks
        assert marks is not None
        letters, arrived, ruling = self._rule(letters, arrived, marks)
        admitted = [(x, at) for x, at, v in zip(letters, arrived, ruling.verdicts, strict=True) if v is Verdict.ADMIT]
        stored = await self._chain.append([_entry(letter) for letter, _ in admitted])
        # Only now: a receipt must never promise more than IN has acknowledged.
        marks.skip(ruling.gaps)
        now = time.time()
        for (letter, at), sequence in zip(admitted, stored, strict=True):
            spoke = None if letter.carried or letter.kind == ENROL else now
            marks.stored(letter.slip.key, letter.slip.sequence, sequence, letter.letter_id, spoke)
            self._watch.stored(letter, sequence)
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
        return ruling

    def _rule(
        self, letters: Sequence[Opened], arrived: Sequence[float], marks: Marks
    ) -> tuple[Sequence[Opened], Sequence[float], Ruling]:
        """Order a batch, without the letters of devices that turn out to have two bodies."""
        ruling = rule([letter.slip for letter in letters], marks.flat)
        suspicions = self._watch.judge(letters, ruling.verdicts, marks)
        if not suspicions:
            return letters, arrived, ruling
        for suspicion in suspicions:
            self._warden.suspect(suspicion)
        out = {suspicion.address for suspicion in suspicions}
        kept = [(letter, at) for letter, at in zip(letters, arrived, strict=True) if letter.address not in out]
        letters, arrived = [letter for letter, _ in kept], [at for _, at in kept]
        return letters, arrived, rule([letter.slip for letter in letters], marks.flat)

    async def _run_errand(self) -> int:
        errand = self._errands.first()
        if errand is None:
            return 0
        assert self._marks is not None
        desk = Desk(self._marks, self._open, self._admit_alone, self._chain.append, self.save)
        await self._errands.run(errand, desk)
        return 1

    async def _admit_alone(self, letter: Opened) -> Verdict | None:
        ruling = await self._admit([letter], [time.time()])
        return ruling.verdicts[0] if ruling.verdicts else None


def _entry(letter: Opened) -> Entry:
    good = letter.refusal is None
    return Entry(
        in_subject(letter.kind, letter.address) if good else refused_subject(letter.address),
        letter.slip.key.message_id(letter.slip.sequence),
        letter.envelope,
        reason=None if letter.refusal is None else letter.refusal.reason,
        letter_id=letter.letter_id,
        way="carried" if letter.carried else None,
    )


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
