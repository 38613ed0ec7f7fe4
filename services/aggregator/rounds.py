"""A job's rounds: what an update comes to, and what to do next. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from schemas.aggregator import Update
from services.aggregator.entries import Accepted, Refused
from services.aggregator.fold import JobFold
from services.aggregator.fx1 import Vector, weight_of
from services.aggregator.updates import UpdateError, open_update
from services.kit.api.aggregator import JobRequest
from services.kit.devices import DeviceRecord

MAX_INVITED = 10_000
PATIENCE_S = 2.0
"""How long a round waits for a device that is offline. Its letter stays in the mailbox; in time, its update counts."""


Outcome = Literal["accepted", "declined", "refused", "conflict", "duplicate"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an update.

    Attributes:
        outcome: `declined`: the device says that it did not train; `duplicate`: its effect is in the ledger already.
        entry: to be appended; None for a duplicate.
        vector: to be added to the sum, once the entry is in the ledger.
        earlier_round: the letter is of a closed round, whose letters are not in memory: look into the ledger before
            appending, since its effect may stand there.
    """

    outcome: Outcome
    entry: Accepted | Refused | None = None
    vector: Vector | None = None
    earlier_round: bool = False


def admit(job: JobFold, device: str, letter: str, update: Update, length: int) -> Verdict:
    """Decide about an update. The first of (job, round, device) counts.

    Args:
        job: as of now; not changed.
        device: sender, of the job's fleet.
        letter: id of the update's letter.
        update: as sent.
        length: numbers in the model's vector.
    """
    if letter in job.letters:
        return Verdict("duplicate")
    first = job.accepted.get(device) if update.round == job.round else None
    if first is not None:
        return _second(first, device, letter, update)
    stale = _stale(job, device, update)
    if stale is not None:
        entry = _refused(device, letter, update, "aggregator", *stale, final=False)
        return Verdict("refused", entry, earlier_round=update.round < job.round)
    if update.outcome != "ok":
        reason, message = update.reason or update.outcome, update.message or ""
        return Verdict("declined", _refused(device, letter, update, "device", reason, message, final=True))
    try:
        vector = open_update(update, length)
    except UpdateError as error:
        entry = _refused(device, letter, update, "aggregator", error.reason, str(error), final=True)
        return Verdict("refused", entry)
    assert update.sha256 is not None
    assert update.vector is not None
    accepted = Accepted(
        round=update.round,
        attempt=update.attempt,
        device=device,
        letter=letter,
        sha256=update.sha256,
        samples=update.samples,
        w=weight_of(update.samples, job.request.unit),
        metrics=update.metrics,
        vector=update.vector,
    )
    return Verdict("accepted", accepted, vector)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now."""


@dataclass(frozen=True, slots=True)
class Open:
    """Open an attempt; `without` have an update in this round already."""

    round: int
    attempt: int
    without: frozenset[str]


@dataclass(frozen=True, slots=True)
class Close:
    """Make the round's weights from the sum."""

    round: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The job is over."""

    state: Literal["done", "failed"]
    reason: str | None = None


Action = Wait | Open | Close | Finish


def plan(job: JobFold, now: datetime, away: frozenset[str] = frozenset()) -> Action:
    """The next step of a job.

    A round closes when everyone invited has answered, not waiting long for devices that are `away`, or at its deadline,
    if `min_updates` count. With fewer it waits for its deadline, since what kept devices from training may pass, and is
    then tried again; `max_attempts` in vain fail the job.
    """
    request = job.request
    if job.state != "running":
        return Wait()
    if job.round > request.rounds:
        return Finish("done")
    again = Open(job.round, job.attempt + 1, frozenset(job.accepted))
    if job.opened is None:
        return again
    enough = len(job.accepted) >= request.min_updates
    patient = (now - job.opened.opens).total_seconds() < PATIENCE_S
    missing = job.opened.invited.keys() - job.answered
    everyone = not missing if patient else missing <= away
    late = now >= job.opened.deadline
    if enough and (everyone or late):
        return Close(job.round, job.attempt)
    if not late:
        return Wait()
    return again if job.tries < request.max_attempts else Finish("failed", _in_vain(job))


def _in_vain(job: JobFold) -> str:
    return (
        f"round {job.round} has {len(job.accepted)} of {job.request.min_updates} updates after {job.tries} attempts; "
        "see the refusals in the ledger, then start the job again"
    )


def candidates(records: Iterable[DeviceRecord], request: JobRequest) -> list[str]:
    """Names of devices that may be invited: enrolled in the fleet, and named by the job or holding its data."""
    named = None if request.devices is None else set(request.devices)
    found = [
        record.device
        for record in records
        if record.fleet == request.fleet
        and record.standing == "enrolled"
        and (request.dataset in record.capabilities.datasets if named is None else record.device in named)
    ]
    return sorted(found)[:MAX_INVITED]


def absent(records: Iterable[DeviceRecord], fleet: str) -> frozenset[str]:
    """Devices of a fleet that are offline or may no longer speak."""
    return frozenset(r.device for r in records if r.fleet == fleet and not (r.online and r.standing == "enrolled"))


@dataclass(frozen=True, slots=True)
class Summary:
    """Metrics of a round, weighted by samples; None where no update has one."""

    samples: int
    loss: float | None
    accuracy: float | None


def summarise(accepted: Iterable[Accepted]) -> Summary:
    """Fold the metrics of a round's updates, in order of the devices' names so that a rerun gives the same bits."""
    updates = sorted(accepted, key=lambda update: update.device)
    return Summary(sum(u.samples for u in updates), _weighted(updates, "loss"), _weighted(updates, "accuracy"))


def _weighted(updates: list[Accepted], metric: str) -> float | None:
    having = [u for u in updates if metric in u.metrics]
    samples = sum(u.samples for u in having)
    return sum(u.metrics[metric] * u.samples for u in having) / samples if samples else None


def _second(first: Accepted, device: str, letter: str, update: Update) -> Verdict:
    if update.outcome != "ok" or update.sha256 == first.sha256:
        return Verdict("duplicate")
    message = f"letter {first.letter} brought {first.sha256} for this round before"
    return Verdict("conflict", _refused(device, letter, update, "aggregator", "conflict", message, final=False))


def _stale(job: JobFold, device: str, update: Update) -> tuple[str, str] | None:
    """Why an update is not for what is open now: reason and message."""
    opened = job.opened
    if update.round < job.round:
        return "stale_round", f"round {update.round} is closed, {job.round} is next or open"
    if job.state != "running" or opened is None:
        return "not_open", f"the job is {job.state} and no round is open"
    found = (
        (
            update.round > job.round or update.attempt > job.attempt,
            "unknown_round",
            f"round {update.round}, attempt {update.attempt} was never opened",
        ),
        (update.attempt < job.attempt, "stale_attempt", f"attempt {update.attempt} is over, {job.attempt} is open"),
        (
            update.base != opened.base.sha256,
            "stale_base",
            f"trained from {update.base}, this round's base is {opened.base.sha256}",
        ),
        (device not in opened.invited, "not_invited", f"{device} was not invited to round {update.round}"),
    )
    return next(((reason, message) for applies, reason, message in found if applies), None)


def _refused(
    device: str,
    letter: str,
    update: Update,
    by: Literal["aggregator", "device"],
    reason: str,
    message: str,
    *,
    final: bool,
) -> Refused:
    return Refused(
        round=update.round,
        attempt=update.attempt,
        device=device,
        letter=letter,
        by=by,
        reason=reason,
        message=message,
        sha256=update.sha256,
        final=final,
    )
