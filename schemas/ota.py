"""Messages of the ota service: what to install, and what came of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from schemas.events import Message
from schemas.ids import Count, Digest, Identifier, Line, Ulid, Version, Word

Stage = Literal["development", "test", "production"]
TargetPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./+-]{0,200}$")]


class Gates(Message):
    """Conditions on the device that hold an installation back."""

    min_battery_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    max_temp_c: Annotated[float, Field(ge=-50, le=150)] | None = None
    unmetered: bool = False


class Assign(Message):
    """Install, roll back or remove one model. Acted on only if the signed release agrees."""

    model: Identifier
    target: TargetPath
    version: Version
    sha256: Digest
    length: Annotated[int, Field(ge=1, le=2**40)]
    seq: Count
    """Order of the release, signed in its custom field; never below the model's floor."""
    action: Literal["install", "rollback", "remove"]
    rollout: Ulid
    wave: Annotated[int, Field(ge=0, le=1_000)]
    gates: Gates = Gates()
    deadline: AwareDatetime


Step = Literal["accept", "fetch", "verify", "stage", "smoke", "commit", "confirm", "rollback"]
Outcome = Literal["ok", "failed", "refused", "waiting"]


class Smoke(Message):
    """Result of the smoke test."""

    passed: bool
    samples: Count
    max_error: Annotated[float, Field(ge=0)] | None = None
    p50_ms: Annotated[float, Field(ge=0)] | None = None


class Report(Message):
    """What a device did about an assignment. Only `confirm`/`ok` with the right digest counts as success."""

    rollout: Ulid
    model: Identifier
    step: Step
    outcome: Outcome
    reason: Word | None = None
    message: Line | None = None
    running_sha256: Digest | None = None
    revision: Count
    """Revision of the assignment that this answers."""
    smoke: Smoke | None = None
    took_s: Annotated[float, Field(ge=0, le=10**7)]


class ReleaseCustom(Message):
    """The signed `custom` of a model's TUF target."""

    model: Identifier
    version: Version
    seq: Annotated[int, Field(ge=1, le=2**53)]
    fleets: Annotated[list[Identifier], Field(max_length=64)] = []
    """Empty: any fleet."""
    stage: Stage = "production"
    requires: Annotated[dict[Identifier, Line | Count], Field(max_length=16)] = {}
    """`ram_mb`, `disk_mb`: at least; `arch`, `os`: equal; any other name must be a runtime that is installed."""
    recipe: Digest
    pieces: Annotated[int, Field(ge=1, le=7_281)]
    """Bounded so that a recipe fits into one piece."""
    smoke: SmokeSpec | None = None
    created: AwareDatetime


class SmokeSpec(Message):
    """Inputs and bounds of the smoke test: a safetensors artifact with `input` and `expected`, float32 each."""

    sha256: Digest
    recipe: Digest
    length: Count
    pieces: Annotated[int, Field(ge=1, le=7_281)] = 1
    tolerance_micro: Annotated[int, Field(ge=1, le=10**9)]
    """Largest absolute error, in millionths: the canonical JSON that TUF signs has no fractions."""

    @property
    def tolerance(self) -> float:
        """Largest absolute error."""
        return self.tolerance_micro / 1e6


ReleaseCustom.model_rebuild()
