"""Verbs of the ota service: create, list, show, abort."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from schemas.ids import Identifier, Ulid, Version
from schemas.ota import Gates


class CreateRequest(BaseModel):
    """`create`: roll a published release out, wave by wave. Answers with `RolloutView`."""

    model: Identifier
    version: Version
    fleet: Identifier
    devices: list[Identifier] | None = Field(None, max_length=100_000)
    """Absent: every enrolled device of the fleet."""
    waves: list[float] = Field([0.1, 1.0], min_length=1, max_length=20)
    """Cumulative share of the devices, or from 2 on a number of devices; the last must be 1.0."""
    canary: Identifier | None = None
    """A device that must be in the first wave."""
    deadline_s: float = Field(3_600.0, gt=0, le=30 * 86_400.0)
    """Per wave; a device that says nothing by then has failed."""
    max_failed_ratio: float = Field(0.0, ge=0, le=1)
    """Of a wave's devices; above it the rollout halts."""
    gates: Gates = Gates()


class RolloutRequest(BaseModel):
    """`show` and `abort`: one rollout."""

    rollout: Ulid


RolloutState = Literal["running", "done", "halted", "aborted"]
DeviceState = Literal["pending", "assigned", "succeeded", "failed", "silent", "late"]


class DeviceProgress(BaseModel):
    """One device of a rollout. `late`: succeeded after its deadline."""

    device: str
    wave: int
    state: DeviceState
    step: str | None = None
    reason: str | None = None
    message: str | None = None
    running_sha256: str | None = None
    applied: list[str] = []
    """Ids of the report letters that had an effect, each once."""


class RolloutView(BaseModel):
    """What `create`, `show` and (as a list) `list` answer."""

    rollout: str
    model: str
    version: str
    fleet: str
    state: RolloutState
    reason: str | None = None
    wave: int
    waves: int
    counts: dict[DeviceState, int] = {}
    """Devices by state; always complete."""
    devices: list[DeviceProgress]
    """Empty in `list`. In `show` of a rollout too large for one answer, those that need attention come first."""
