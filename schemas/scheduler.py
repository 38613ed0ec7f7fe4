"""Messages of the scheduler: work for idle devices, and its results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from schemas.events import Message
from schemas.ids import Base64, Count, Digest, EntryPoint, Identifier, Line, Ulid, Word

TaskKind = Literal["inference", "training", "evaluation", "data", "diagnose", "pipeline", "user"]
Value = (
    Annotated[str, StringConstraints(max_length=4_096)] | Annotated[int, Field(ge=-(2**53), le=2**53)] | float | bool
)
Values = Annotated[dict[Identifier, Value], Field(max_length=64)]


class Limits(Message):
    """What a task may use on the device."""

    cpu_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    ram_mb: Annotated[int, Field(ge=1, le=2**20)] = 256
    wall_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0


class Task(Message):
    """One attempt (`term`) at a task. Names code that the owner installed; never carries code."""

    task: Ulid
    term: Annotated[int, Field(ge=1, le=10**6)]
    kind: TaskKind
    runner: EntryPoint
    inputs: Values = {}
    limits: Limits = Limits()
    deadline: AwareDatetime


class Result(Message):
    """What came of one attempt."""

    task: Ulid
    term: Annotated[int, Field(ge=1, le=10**6)]
    outcome: Literal["ok", "failed", "refused"]
    reason: Word | None = None
    message: Line | None = None
    output: Values = {}
    digest: Digest | None = None
    took_s: Annotated[float, Field(ge=0, le=10**7)]
    cpu_s: Annotated[float, Field(ge=0, le=10**7)]


class Cancel(Message):
    """Stop a task or a round."""

    task: Ulid | None = None
    term: Count | None = None
    job: Identifier | None = None
    round: Count | None = None


__all__ = ["Base64", "Cancel", "Limits", "Result", "Task", "TaskKind", "Values"]
