"""A job's rounds: what an update comes to, and what to do next. Pure; the state is the fold of the job's ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from schemas.aggregator import Artifact, Update
from services.aggregator.entries import Accepted, Closed, Ended, Entry, Opened, Refused, Started
from services.aggregator.fx1 import MAX_UPDATES, Vector, weight_of
from services.aggregator.updates import UpdateError, open_update
from services.kit.api.aggregator import JobRequest, JobState, RoundView
from services.kit.devices import DeviceRecord

HISTORY_KEPT = 1_000
"""Closed rounds that a job's record names; the ledger has them all."""
MAX_INVITED = 10_000


@dataclass(slots=True)
class JobFold:
    """A job as its ledger tells it.

    Attributes:
        sequence: of the last entry folded in.
        base_sequence: of the last closed round's entry; folding begins after it.
        closed_at: sequence of the closing entry by round.
        round: the one that is open or opens next; above `request.rounds` when all are closed.
        attempt: last one opened in this round, 0 if none.
        tries: attempts since the round or the job began.
        opened: the attempt that updates are taken for.
        accepted: updates of this round that count, by device; they stay from attempt to attempt, as the base does.
        answered: devices that have answered the open attempt, either way.
        letters: ids of this round's letters that had their effect.
    """

    request: JobRequest
    state: JobState = "created"
    reason: str | None = None
    sequence: int = 0
    base_sequence: int = 0
    closed_at: dict[int, int] = field(default_factory=dict)
    round: int = 1
    attempt: int = 0
    tries: int = 0
    weights: Artifact | None = None
    history: list[RoundView] = field(default_factory=list)
    opened: Opened | None = None
    opened_sequence: int = 0
    round_began: datetime | None = None
    accepted: dict[str, Accepted] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    letters: set[str] = field(default_factory=set)

    def apply(self, entry: Entry, sequence: int) -> None:
        """Take over the next entry of the ledger."""
        self.sequence = sequence
        match entry:
            case Started():
                self.state, self.reason, self.opened, self.tries = "running", None, None, 0
            case Opened():
                self.opened, self.opened_sequence = entry, sequence
                self.attempt, self.tries = entry.attempt, self.tries + 1
                self.round_began = self.round_began or entry.opens
                self.answered = set(self.accepted)
            case Accepted():
                # Without the vector, which is in the sum: 10,000 of them would be 500 MB.
                self.accepted[entry.device] = entry.model_copy(update={"vector": ""})
                self.answered.add(entry.device)
                self.letters.add(entry.letter)
            case Refused():
                self.letters.add(entry.letter)
                if entry.final:
                    self.answered.add(entry.device)
            case Closed():
                self._close(entry, sequence)
            case Ended():
                self.state, self.reason, self.opened = entry.state, entry.reason, None

    def start_of(self, number: int) -> int:
        """Sequence after which a round's entries stand; 0 if it is not known any more."""
        return self.closed_at.get(number - 1, 0)

    def _close(self, entry: Closed, sequence: int) -> None:
        self.base_sequence = self.closed_at[entry.round] = sequence
        self.closed_at.pop(entry.round - HISTORY_KEPT, None)
        self.weights = entry.weights
        fields = entry.model_dump(exclude={"entry", "at"})
        self.history = [*self.history, RoundView.model_validate(fields)][-HISTORY_KEPT:]
        self.round, self.attempt, self.tries = entry.round + 1, 0, 0
        self.opened, self.round_began = None, None
        self.accepted, self.answered, self.letters = {}, set(), set()


Outcome = Literal["accepted", "declined", "refused", "conflict", "duplicate"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an update.

    Attributes:
        outcome: `declined`: the device says that it did not train; `duplicate`: its effect is in the ledger already.
        entry: to be appended; None for a duplicate.
        vector: to be added to the sum, once the entry is in the ledger.
        earlier_round: the letter belongs to a closed round, whose letters are not in memory: look into the ledger before
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
        if len(job.accepted) >= MAX_UPDATES:
            raise UpdateError(f"the round holds {MAX_UPDATES} updates already", reason="round_full")
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


def plan(job: JobFold, now: datetime) -> Action:
    """The next step of a job.

    A round closes when everyone invited has answered, or at its deadline, if `min_updates` count. With fewer it waits for
    its deadline, since what kept devices from training may pass, and is then tried again; `max_attempts` in vain fail
    the job.
    """
    request = job.request
    if job.state != "running":
        return Wait()
    if job.round > request.rounds:
        return Finish("done")
    if job.opened is None:
        return Open(job.round, job.attempt + 1, frozenset(job.accepted))
    enough = len(job.accepted) >= request.min_updates
    everyone = job.answered.issuperset(job.opened.invited)
    late = now >= job.opened.deadline
    if enough and (everyone or late):
        return Close(job.round, job.attempt)
    if not late:
        return Wait()
    if job.tries >= request.max_attempts:
        count = len(job.accepted)
        return Finish(
            "failed",
            f"round {job.round} has {count} of {request.min_updates} updates after {job.tries} attempts; "
            "see the refusals in the ledger, then start the job again",
        )
    return Open(job.round, job.attempt + 1, frozenset(job.accepted))


def candidates(records: Iterable[DeviceRecord], request: JobRequest) -> list[str]:
    """Devices that may be invited, by name: enrolled in the fleet, and either named by the job or in possession of its data."""
    named = None if request.devices is None else set(request.devices)
    found = [
        record.device
        for record in records
        if record.fleet == request.fleet
        and record.standing == "enrolled"
        and (request.dataset in record.capabilities.datasets if named is None else record.device in named)
    ]
    return sorted(found)[:MAX_INVITED]


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
    if update.round < job.round:
        return "stale_round", f"round {update.round} is closed, {job.round} is next or open"
    if job.state != "running" or job.opened is None:
        return "not_open", f"the job is {job.state} and no round is open"
    if update.round > job.round or update.attempt > job.attempt:
        return "unknown_round", f"round {update.round}, attempt {update.attempt} was never opened"
    if update.attempt < job.attempt:
        return "stale_attempt", f"attempt {update.attempt} is over, {job.attempt} is open"
    if update.base != job.opened.base.sha256:
        return "stale_base", f"trained from {update.base}, this round's base is {job.opened.base.sha256}"
    if device not in job.opened.invited:
        return "not_invited", f"{device} was not invited to round {update.round}"
    return None


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
