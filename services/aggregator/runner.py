"""One job at work: carries out what `rounds` decides, the ledger first and everything else after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from pydantic import BaseModel
from ulid import ULID

from edge_runtime.learning.catalogue import build_estimator
from edge_runtime.learning.estimator import Weights
from edge_runtime.learning.vector import Shapes, count, shapes_of, unpack, write_weights
from schemas.aggregator import Artifact, Round, Update
from schemas.ids import Address
from services.aggregator import metrics
from services.aggregator.entries import Accepted, Closed, Ended, Entry, Opened, Started
from services.aggregator.fold import JobFold
from services.aggregator.fx1 import Accumulator
from services.aggregator.rounds import Close, Finish, Open, Wait, admit, plan, summarise
from services.aggregator.store import JobRecord, JobStore, Ledger, LedgerMovedError, record_of
from services.aggregator.updates import stored_vector
from services.kit.mailbox import Draft

log = structlog.get_logger()

MAX_STEPS = 4
"""Decisions carried out in one turn."""
SAVE_INTERVAL_S = 0.5
"""How often the record may follow single updates; steps are saved at once."""
MAX_RIVALRY = 8
"""Times that the ledger may have moved before a decision is given up, to be repeated later."""
LETTER_KIND = "round"


class RoundClosed(BaseModel):
    """Event `round-closed`."""

    job: str
    fleet: str
    round: int
    rounds: int
    updates: int
    loss: float | None
    accuracy: float | None
    weights: Artifact


class JobDone(BaseModel):
    """Event `job-done`: no further round will be opened."""

    job: str
    fleet: str
    state: str
    reason: str | None


class Outside(Protocol):
    """What a job asks of the platform."""

    def candidates(self, job: JobFold) -> list[str]:
        """Devices that may be invited now."""

    def away(self, job: JobFold) -> frozenset[str]:
        """Devices that cannot answer now."""

    async def post(self, draft: Draft, now: datetime) -> None:
        """Put a letter into a mailbox; repeating it is harmless."""

    async def publish(self, data: bytes) -> Artifact:
        """Store an artifact and have it cut into pieces; repeating it is harmless."""

    async def announce(self, event: str, data: BaseModel) -> None:
        """Publish a fact."""


class JobRunner:
    """Serialises everything that concerns one job.

    What is in memory is a cache of the ledger. After any doubt (a failed append, a reconnect) it is dropped and folded
    again, so a kill at any point loses nothing and repeats nothing.
    """

    def __init__(self, record: JobRecord, revision: int, ledger: Ledger, store: JobStore, outside: Outside) -> None:
        self._record = record
        self._saved = record
        self._revision = revision
        self._ledger = ledger
        self._store = store
        self._outside = outside
        self._lock = asyncio.Lock()
        self._shapes: Shapes = {}
        self._fold: JobFold | None = None
        self._sum = Accumulator(0)
        self._unposted: dict[str, str] = {}
        self._saved_at = 0.0
        self.retry_at = 0.0

    @property
    def view(self) -> JobRecord:
        """The job as others see it."""
        return self._record if self._fold is None else record_of(self._fold)

    @property
    def is_over(self) -> bool:
        """Whether nothing happens before an operator's next word."""
        return self.view.state in {"done", "stopped", "failed", "created"}

    async def load(self) -> None:
        """Fold the ledger, unless that is done."""
        async with self._lock:
            await self._folded()
            await self._save()

    async def reload(self) -> None:
        """Fold the ledger again before the next use."""
        async with self._lock:
            self._forget()

    async def start(self, now: datetime) -> JobRecord:
        """Begin, or go on after a stop or a failure."""
        return await self._decide(lambda job: None if job.state in {"running", "done"} else Started(at=now))

    async def stop(self, now: datetime) -> JobRecord:
        """Open nothing further; updates on their way are refused."""
        return await self._decide(
            lambda job: Ended(state="stopped", at=now) if job.state in {"created", "running"} else None
        )

    async def take(self, device: str, letter: str, update: Update) -> str:
        """Give an update its one effect; safe to repeat.

        Returns:
            The verdict's outcome.
        """
        async with self._lock:
            for _ in range(MAX_RIVALRY):
                job = await self._folded()
                verdict = admit(job, device, letter, update, count(self._shapes))
                if verdict.entry is None:
                    return verdict.outcome
                if verdict.earlier_round and await self._ledger.holds_letter(
                    job.request.job, letter, after=job.start_of(update.round)
                ):
                    return "duplicate"
                try:
                    await self._append(verdict.entry)
                except LedgerMovedError as error:
                    self._moved(error)
                    continue
                return verdict.outcome
        raise self._rivalry()

    async def step(self, now: datetime) -> None:
        """Do whatever is due."""
        async with self._lock:
            for _ in range(MAX_STEPS):
                job = await self._folded()
                await self._post_rest(job, now)
                try:
                    if not await self._act(job, now):
                        break
                except LedgerMovedError as error:
                    self._moved(error)
            if time.monotonic() - self._saved_at >= SAVE_INTERVAL_S:
                await self._save()

    async def _act(self, job: JobFold, now: datetime) -> bool:
        action = plan(job, now, self._outside.away(job))
        match action:
            case Wait():
                return False
            case Open():
                await self._open(job, action, now)
            case Close():
                await self._close(job, action, now)
            case Finish():
                await self._append(Ended(state=action.state, reason=action.reason, at=now))
                await self._save()
                done = JobDone(job=job.request.job, fleet=job.request.fleet, state=job.state, reason=job.reason)
                await self._outside.announce("job-done", done)
                log.info("job.ended", **done.model_dump())
        return True

    async def _open(self, job: JobFold, action: Open, now: datetime) -> None:
        request = job.request
        base = job.weights or await self._outside.publish(write_weights(self._initial()))
        invited = [device for device in self._outside.candidates(job) if device not in action.without]
        opened = Opened(
            round=action.round,
            attempt=action.attempt,
            base=base,
            invited={device: str(ULID()) for device in invited},
            opens=now,
            deadline=now + timedelta(seconds=request.round_deadline_s),
        )
        await self._append(opened)
        await self._post_rest(job, now)
        await self._save()
        log.info("round.opened", job=request.job, round=action.round, attempt=action.attempt, invited=len(invited))

    async def _close(self, job: JobFold, action: Close, now: datetime) -> None:
        assert job.round_began is not None
        with metrics.AGGREGATION_TIME.time():
            weights = await self._outside.publish(write_weights(unpack(self._sum.mean(), self._shapes)))
        summary = summarise(job.accepted.values())
        closed = Closed(
            round=action.round,
            attempt=action.attempt,
            weights=weights,
            updates=len(job.accepted),
            invited=len({*job.accepted, *(job.opened.invited if job.opened else ())}),
            samples=summary.samples,
            loss=summary.loss,
            accuracy=summary.accuracy,
            at=now,
            took_s=(now - job.round_began).total_seconds(),
        )
        await self._append(closed)
        metrics.ROUNDS_COMPLETED.inc()
        await self._save()
        fact = RoundClosed(
            job=job.request.job,
            fleet=job.request.fleet,
            rounds=job.request.rounds,
            **closed.model_dump(include={"round", "updates", "loss", "accuracy", "weights"}),
        )
        await self._outside.announce("round-closed", fact)
        log.info("round.closed", **fact.model_dump(exclude={"weights"}), weights=weights.sha256)

    async def _post_rest(self, job: JobFold, now: datetime) -> None:
        """Send the open attempt's letters that are not in mailboxes yet, as far as this process knows."""
        opened, request = job.opened, job.request
        if opened is None:
            self._unposted = {}
            return
        for device, letter in list(self._unposted.items()):
            invitation = Round(
                job=request.job,
                round=opened.round,
                attempt=opened.attempt,
                base=opened.base,
                estimator=request.estimator,
                dataset=request.dataset,
                parameters=request.parameters,
                unit=request.unit,
                opens=opened.opens,
                deadline=opened.deadline,
            )
            if device not in job.answered and now < opened.deadline:
                draft = Draft(
                    kind=LETTER_KIND,
                    address=Address(request.fleet, device),
                    data=invitation,
                    letter_id=letter,
                    slot=letter,
                    revision=job.opened_sequence,
                    expires=opened.deadline,
                )
                await self._outside.post(draft, now)
            del self._unposted[device]

    async def _decide(self, choose: Callable[[JobFold], Entry | None]) -> JobRecord:
        async with self._lock:
            for _ in range(MAX_RIVALRY):
                entry = choose(await self._folded())
                if entry is None:
                    return self.view
                try:
                    await self._append(entry)
                except LedgerMovedError as error:
                    self._moved(error)
                    continue
                await self._save()
                return self.view
        raise self._rivalry()

    async def _append(self, entry: Entry) -> None:
        job = await self._folded()
        try:
            sequence = await self._ledger.append(job.request.job, entry, after=job.sequence)
        except BaseException:
            # It may be stored or not: only the ledger knows.
            self._forget()
            raise
        self._apply(job, entry, sequence)

    async def _folded(self) -> JobFold:
        if self._fold is None:
            request = self._record.request
            self._shapes = shapes_of(self._initial())
            job = self._record.fold()
            self._sum = Accumulator(count(self._shapes))
            last = await self._ledger.last(request.job)
            if last < job.base_sequence:
                # JetStream lost its tail, or was restored from a backup. The closed rounds are in the record.
                log.error("ledger.went_back", job=request.job, ends_at=last, known=job.base_sequence)
                job.base_sequence, job.sequence, job.closed_at = last, last, {}
            async for sequence, entry in self._ledger.read(request.job, after=job.base_sequence):
                self._apply(job, entry, sequence)
            self._fold = job
        return self._fold

    def _apply(self, job: JobFold, entry: Entry, sequence: int) -> None:
        job.apply(entry, sequence)
        match entry:
            case Accepted():
                self._sum.add(stored_vector(entry.vector), entry.w)
            case Opened():
                self._unposted = dict(entry.invited)
            case Closed():
                self._sum = Accumulator(count(self._shapes))
            case _:
                pass

    def _initial(self) -> Weights:
        request = self._record.request
        return build_estimator(request.estimator, request.parameters, seed=request.seed).get_weights()

    async def _save(self) -> None:
        self._saved_at = time.monotonic()
        record = self.view
        if record != self._saved:
            self._revision = await self._store.update(record, self._revision)
            self._saved = record

    def _forget(self) -> None:
        if self._fold is not None:
            self._record = record_of(self._fold)
            self._fold = None

    def _moved(self, error: LedgerMovedError) -> None:
        log.warning("ledger.moved", job=self._record.job, detail=str(error))
        self._forget()

    def _rivalry(self) -> LedgerMovedError:
        return LedgerMovedError(
            f"the ledger of {self._record.job} moved {MAX_RIVALRY} times during one decision; "
            "does another aggregator run?"
        )
