"""Verbs of the scheduler: submit, list, show."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, Field

from schemas.ids import EntryPoint, Identifier, Ulid
from schemas.scheduler import Limits, TaskKind, Values


class Requires(BaseModel):
    """What a device must offer; a reading that is missing is not zero."""

    ram_free_mb: int = Field(64, ge=0)
    min_battery_percent: float = Field(30.0, ge=0, le=100)
    """A device without battery passes."""
    max_temp_c: float = Field(55.0, ge=-50, le=150)
    """A device without sensor passes."""
    devices: list[Identifier] | None = Field(None, max_length=10_000)
    """Absent: any."""
    dataset: Identifier | None = None


class SubmitRequest(BaseModel):
    """`submit`: place `count` equal tasks. Answers with a list of `TaskView`."""

    kind: TaskKind
    runner: EntryPoint
    inputs: Values = {}
    limits: Limits = Limits()
    requires: Requires = Requires()
    fleet: Identifier
    count: int = Field(1, ge=1, le=10_000)
    max_per_device: int | None = Field(None, ge=1)
    """Of these tasks at the same time; absent: as the score says."""
    deadline_s: float = Field(600.0, gt=0, le=86_400)
    """For one attempt."""
    max_terms: int = Field(3, ge=1, le=100)


class TaskRequest(BaseModel):
    """`show`: one task."""

    task: Ulid


class TaskListRequest(BaseModel):
    """`list`: tasks of a fleet, newest first."""

    fleet: Identifier | None = None
    limit: int = Field(200, ge=1, le=10_000)


TaskState = Literal["queued", "leased", "done", "failed"]


class Reason(BaseModel):
    """Why a device was or was not chosen."""

    device: str
    score: float | None = None
    """Absent: not eligible."""
    why: str


class AppliedResult(BaseModel):
    """A result that had its effect."""

    letter: str
    device: str
    term: int
    outcome: str
    reason: str | None = None
    message: str | None = None
    output: Values = {}
    took_s: float
    cpu_s: float


class TaskView(BaseModel):
    """What the verbs answer per task."""

    task: str
    kind: str
    runner: str
    fleet: str
    state: TaskState
    device: str | None = None
    term: int
    reasons: list[Reason] = []
    """Of the present placement: the chosen device first, then the others."""
    results: list[AppliedResult] = []
    """Every entry is an effect: exactly one is `ok` when done, a refusal or failure ended its term."""
    stale_results: int = 0
    """Of an older term: counted, not applied."""
    reason: str | None = None
    """Why it failed, or what it waits for."""
    deadline: AwareDatetime | None = None
    """Of the present attempt."""
