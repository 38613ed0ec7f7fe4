"""Where jobs are kept: the ledger in stream ROUNDS, the present state in bucket `jobs`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from nats.js.api import Header
from nats.js.errors import APIError, KeyWrongLastSequenceError, NoKeysError, NotFoundError
from nats.js.kv import KeyValue

from schemas.ids import check_identifier
from schemas.topics import rounds_subject
from services.aggregator.entries import Accepted, Entry, Refused, effect_key, read_entry
from services.aggregator.fold import JobFold
from services.kit.api.aggregator import JobRequest, JobView
from services.kit.bus import Bus
from services.kit.errors import RefusedError
from services.kit.mailbox import LETTER_ID
from services.kit.puller import scan, sequence_of
from services.kit.streams import ROUNDS

_WRONG_LAST_SEQUENCE = frozenset({10070, 10071})


class LedgerMovedError(Exception):
    """The ledger is not where this process thought: read it again, then decide again."""


class Ledger:
    """Stream ROUNDS, a subject per job. Only appends."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def append(self, job: str, entry: Entry, *, after: int) -> int:
        """Append an entry behind the one with sequence `after`.

        Returns:
            Its sequence; it is stored.

        Raises:
            LedgerMovedError: if another entry stands there, or this effect is in the ledger.
            nats.errors.Error: if JetStream does not answer; the entry may be stored or not.
        """
        headers = {
            Header.MSG_ID.value: effect_key(job, entry),
            Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(after),
        }
        if isinstance(entry, Accepted | Refused):
            headers[LETTER_ID] = entry.letter
        try:
            ack = await self._bus.js.publish(
                rounds_subject(job), entry.model_dump_json(exclude_none=True).encode(), headers=headers
            )
        except APIError as error:
            if error.err_code in _WRONG_LAST_SEQUENCE:
                raise LedgerMovedError(f"ledger of {job} does not end at {after}: {error.description}") from error
            raise
        if ack.duplicate:
            raise LedgerMovedError(f"ledger of {job} holds this effect already")
        return ack.seq

    async def last(self, job: str) -> int:
        """Sequence of the last entry; 0 if there is none."""
        try:
            return (await self._bus.js.get_last_msg(ROUNDS.name, rounds_subject(job))).seq or 0
        except NotFoundError:
            return 0

    async def read(self, job: str, *, after: int) -> AsyncIterator[tuple[int, Entry]]:
        """Entries with a sequence above `after`, to the one that is last when the reading begins."""
        async for message in scan(self._bus, ROUNDS.name, after + 1, subject=rounds_subject(job)):
            yield sequence_of(message), read_entry(message.data)

    async def holds_letter(self, job: str, letter: str, *, after: int) -> bool:
        """Whether a letter's effect stands above sequence `after`."""
        subject = rounds_subject(job)
        async for message in scan(self._bus, ROUNDS.name, after + 1, headers_only=True, subject=subject):
            if (message.headers or {}).get(LETTER_ID) == letter:
                return True
        return False


class JobRecord(JobView):
    """Bucket `jobs`: a job as others see it, and where its ledger was folded up to."""

    request: JobRequest
    base_sequence: int = 0
    """Of the last closed round's entry. `history` and `weights` are as of it; whatever came after is folded again."""
    closed_at: dict[int, int] = {}

    def fold(self) -> JobFold:
        """The state as of `base_sequence`."""
        closed = self.base_sequence > 0
        return JobFold(
            request=self.request,
            state="running" if closed else "created",
            sequence=self.base_sequence,
            base_sequence=self.base_sequence,
            closed_at=dict(self.closed_at),
            round=self.history[-1].round + 1 if self.history else 1,
            weights=self.weights if closed else None,
            history=list(self.history),
        )


def record_of(job: JobFold) -> JobRecord:
    """What bucket `jobs` and the verbs say of a job."""
    request = job.request
    # A base that no round has closed on belongs to the open round, not to the job.
    return JobRecord(
        job=request.job,
        fleet=request.fleet,
        state=job.state,
        reason=job.reason,
        round=min(job.round, request.rounds),
        rounds=request.rounds,
        attempt=job.attempt,
        received=sorted(job.accepted),
        invited=sorted({*(job.opened.invited if job.opened else ()), *job.accepted}),
        estimator=request.estimator,
        parameters=request.parameters,
        weights=job.weights,
        history=job.history,
        request=request,
        base_sequence=job.base_sequence,
        closed_at=job.closed_at,
    )


class JobStore:
    """Bucket `jobs`, written by compare-and-set."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket

    async def all(self) -> dict[str, tuple[JobRecord, int]]:
        """Every job with the revision of its record."""
        try:
            names = await self._bucket.keys()
        except NoKeysError:
            return {}
        return {name: await self.get(name) for name in names}

    async def get(self, job: str) -> tuple[JobRecord, int]:
        """One job's record and its revision."""
        entry = await self._bucket.get(check_identifier(job, "job"))
        assert entry.value is not None
        assert entry.revision is not None
        return JobRecord.model_validate_json(entry.value), entry.revision

    async def create(self, record: JobRecord) -> int:
        """Store a new job.

        Raises:
            RefusedError: if the name is taken.
        """
        try:
            return await self._bucket.create(record.job, record.model_dump_json().encode())
        except KeyWrongLastSequenceError as error:
            raise RefusedError(
                f"create job {record.job}: there is one of this name; choose another, or see it with "
                f"`causeway train list`"
            ) from error

    async def update(self, record: JobRecord, revision: int) -> int:
        """Replace the record whose revision is `revision`; returns the new one.

        A record is a view of the ledger. If it moved, the writer's ledger guards against a rival: write behind it.
        """
        raw = record.model_dump_json().encode()
        try:
            return await self._bucket.update(record.job, raw, last=revision)
        except KeyWrongLastSequenceError:
            _, present = await self.get(record.job)
            return await self._bucket.update(record.job, raw, last=present)
