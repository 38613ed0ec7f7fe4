"""Verbs of the aggregator: create, start, stop, list, show."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from schemas.aggregator import Artifact
from schemas.ids import EntryPoint, Identifier
from schemas.scheduler import Values


class JobRequest(BaseModel):
    """`create`: a federated job. Answers with `JobView`."""

    job: Identifier
    fleet: Identifier
    dataset: Identifier
    estimator: EntryPoint
    parameters: Values = {}
    rounds: int = Field(8, ge=1, le=10_000)
    devices: list[Identifier] | None = Field(None, max_length=10_000)
    """Absent: every enrolled device that has the dataset."""
    min_updates: int = Field(1, ge=1)
    """Fewer at the deadline: the round is tried again."""
    round_deadline_s: float = Field(120.0, gt=0, le=86_400)
    max_attempts: int = Field(5, ge=1, le=1_000)
    unit: int = Field(1, ge=1)
    seed: int = Field(0, ge=0, le=2**53)


class JobName(BaseModel):
    """`start`, `stop` and `show`: one job."""

    job: Identifier


JobState = Literal["created", "running", "done", "stopped", "failed"]


class RoundView(BaseModel):
    """One closed round."""

    round: int
    attempt: int
    updates: int
    invited: int
    samples: int
    loss: float | None = None
    accuracy: float | None = None
    weights: Artifact
    took_s: float


class JobView(BaseModel):
    """What the verbs answer per job."""

    job: str
    fleet: str
    state: JobState
    reason: str | None = None
    round: int
    rounds: int
    attempt: int
    received: list[str] = []
    """Devices whose update the present round holds."""
    invited: list[str] = []
    estimator: str
    parameters: Values = {}
    weights: Artifact | None = None
    """The newest global weights."""
    history: list[RoundView] = []
