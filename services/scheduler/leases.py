"""The life of a task as a pure state machine: queued, leased for one term after the other, done or failed.

The lease lives inside the task's record and not in a bucket of its own: one compare-and-set of one key then decides
who holds the task, under which term and which letter says so, and no crash can leave a lease without its task or a task
with two leases. The letter is posted after the record is stored and carries the letter id that the record holds, so
posting it again is harmless. A result changes the record in the same way; the record is the effect, and knows the
letters that made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from pydantic import AwareDatetime, BaseModel, ConfigDict

from schemas.errors import MessageError
from schemas.ids import Address
from schemas.scheduler import Limits, Result, Task, Values
from services.kit.api.scheduler import AppliedResult, Reason, SubmitRequest, TaskState, TaskView
from services.scheduler.placement import Demand

GRACE_S = 5.0
"""After the deadline, for the result to travel."""
MAX_STALE_KNOWN = 64
"""Ids of stale letters that are kept, so that each counts once."""


class Attempt(BaseModel):
    """One term: who holds the lease, and the letter that says so."""

    model_config = ConfigDict(frozen=True)

    term: int
    device: str
    letter: str
    granted: AwareDatetime
    deadline: AwareDatetime


class TaskRecord(BaseModel):
    """Bucket `tasks`, key = task. Written by compare-and-set only."""

    model_config = ConfigDict(frozen=True)

    task: str
    group: str
    request: SubmitRequest
    created: AwareDatetime
    state: TaskState = "queued"
    term: int = 0
    """Of the newest attempt; 0 before the first."""
    attempts: list[Attempt] = []
    reasons: list[Reason] = []
    results: list[AppliedResult] = []
    stale: list[str] = []
    stale_results: int = 0
    reason: str | None = None

    @property
    def lease(self) -> Attempt | None:
        """The attempt in hand."""
        return self.attempts[-1] if self.state == "leased" else None

    @property
    def demand(self) -> Demand:
        """What placement needs to know."""
        request = self.request
        return Demand(
            fleet=request.fleet,
            runner=request.runner,
            requires=request.requires,
            ram_mb=request.limits.ram_mb,
            group=self.group,
            max_per_device=request.max_per_device,
        )

    @property
    def tried(self) -> frozenset[str]:
        """Devices that had an attempt."""
        return frozenset(attempt.device for attempt in self.attempts)

    @property
    def place_by(self) -> datetime:
        """A task that nobody could take until then fails; every attempt could have ended by then."""
        return self.created + timedelta(seconds=self.request.deadline_s * self.request.max_terms)

    def letter(self, attempt: Attempt) -> Task:
        """The data of the letter to the device."""
        request = self.request
        return task_data(
            self.task, attempt.term, request.kind, request.runner, request.inputs, request.limits, attempt.deadline
        )

    def view(self) -> TaskView:
        """What the verbs answer."""
        return TaskView(
            task=self.task,
            kind=self.request.kind,
            runner=self.request.runner,
            fleet=self.request.fleet,
            state=self.state,
            device=self.attempts[-1].device if self.attempts else None,
            term=self.term,
            reasons=self.reasons,
            results=self.results,
            stale_results=self.stale_results,
            reason=self.reason,
            deadline=self.lease.deadline if self.lease else None,
        )


def task_data(task: str, term: int, kind: str, runner: str, inputs: Values, limits: Limits, deadline: datetime) -> Task:
    """Build the data of a task letter."""
    return Task.model_validate(
        {
            "task": task,
            "term": term,
            "kind": kind,
            "runner": runner,
            "inputs": inputs,
            "limits": limits,
            "deadline": deadline,
        }
    )


class Verdict(Enum):
    """What became of a result."""

    APPLIED = "applied"
    REPEATED = "repeated"
    """The same letter again; its effect stands."""
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Ruling:
    """A verdict and the record that follows from it."""

    verdict: Verdict
    record: TaskRecord


def grant(record: TaskRecord, device: str, reasons: tuple[Reason, ...], letter: str, now: datetime) -> TaskRecord:
    """Lease a queued task to a device under the next term."""
    attempt = Attempt(
        term=record.term + 1,
        device=device,
        letter=letter,
        granted=now,
        deadline=now + timedelta(seconds=record.request.deadline_s),
    )
    return record.model_copy(
        update={
            "state": "leased",
            "term": attempt.term,
            "attempts": [*record.attempts, attempt],
            "reasons": list(reasons),
            "reason": None,
        }
    )


def hold(record: TaskRecord, reasons: tuple[Reason, ...], now: datetime) -> TaskRecord:
    """A queued task that nobody can take: keep it with the reasons, or fail it when its time is over."""
    if now >= record.place_by:
        waited = (now - record.created).total_seconds()
        return record.model_copy(
            update={
                "state": "failed",
                "reasons": list(reasons),
                "reason": f"no device could take it within {waited:.0f} s; see the reasons of each",
            }
        )
    why = "no device can take it now" if reasons else "no device is enrolled in this fleet"
    return record.model_copy(update={"reasons": list(reasons), "reason": why})


def expire(record: TaskRecord, now: datetime) -> TaskRecord | None:
    """End a lease whose deadline and grace have passed; None if it still runs. Silence is failure."""
    lease = record.lease
    if lease is None or now < lease.deadline + timedelta(seconds=GRACE_S):
        return None
    return _next(record, f"{lease.device} said nothing by its deadline (term {lease.term})")


def apply_result(record: TaskRecord, sender: Address, letter: str, result: Result) -> Ruling:
    """Fold one result into its task: the first of the present term is applied, any other is counted.

    Raises:
        MessageError: `unknown_term` for a term that was never granted, `not_leased` if the sender never held it.
    """
    if letter in record.stale or any(applied.letter == letter for applied in record.results):
        return Ruling(Verdict.REPEATED, record)
    if result.term > record.term:
        raise MessageError(
            f"result of {sender} for term {result.term} of task {record.task}: the newest is {record.term}",
            reason="unknown_term",
        )
    holder = record.attempts[result.term - 1].device
    if sender != Address(record.request.fleet, holder):
        raise MessageError(
            f"result of {sender} for term {result.term} of task {record.task}: {holder} held it", reason="not_leased"
        )
    over = record.state in {"done", "failed"}
    if over or result.term < record.term or any(applied.term == result.term for applied in record.results):
        known = [*record.stale, letter][-MAX_STALE_KNOWN:]
        stale = record.model_copy(update={"stale": known, "stale_results": record.stale_results + 1})
        return Ruling(Verdict.STALE, stale)
    applied = AppliedResult(
        letter=letter,
        device=sender.device,
        term=result.term,
        outcome=result.outcome,
        reason=result.reason,
        message=result.message,
        output=result.output,
        took_s=result.took_s,
        cpu_s=result.cpu_s,
    )
    folded = record.model_copy(update={"results": [*record.results, applied]})
    if result.outcome == "ok":
        return Ruling(Verdict.APPLIED, folded.model_copy(update={"state": "done", "reason": None}))
    said = f"{sender.device} {result.outcome}: {result.reason or 'no reason'} (term {result.term})"
    return Ruling(Verdict.APPLIED, _next(folded, said))


def _next(record: TaskRecord, why: str) -> TaskRecord:
    """After a term that came to nothing: queue for the next one, or fail when there is none."""
    if record.term >= record.request.max_terms:
        return record.model_copy(update={"state": "failed", "reason": f"{why}; no term of {record.term} is left"})
    return record.model_copy(update={"state": "queued", "reason": why})
