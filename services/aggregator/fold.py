"""A job as its ledger tells it: the state is the fold of the entries, in their order. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from schemas.aggregator import Artifact
from services.aggregator.entries import Accepted, Closed, Ended, Entry, Opened, Refused, Started
from services.kit.api.aggregator import JobRequest, JobState, RoundView

HISTORY_KEPT = 1_000
"""Closed rounds that a job's record names; the ledger has them all."""


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
