"""Messages of the aggregator: rounds of federated learning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from schemas.events import Message
from schemas.ids import Base64, Count, Digest, EntryPoint, Identifier, Line, Word
from schemas.scheduler import Values

MAX_INLINE_BYTES = 34_816
"""Of a vector; base64 in the letter and again in its envelope, it stays below the 64 KiB of a letter."""


class Artifact(Message):
    """Bytes named by digest, and how to fetch them."""

    sha256: Digest
    length: Count
    recipe: Digest
    pieces: Annotated[int, Field(ge=1, le=7_281)]


class Round(Message):
    """An invitation to train from `base`."""

    job: Identifier
    round: Annotated[int, Field(ge=1, le=10**6)]
    attempt: Annotated[int, Field(ge=1, le=10**4)]
    base: Artifact
    """Weights as safetensors, float32."""
    estimator: EntryPoint
    dataset: Identifier
    parameters: Values = {}
    wire: Literal["f32"] = "f32"
    unit: Annotated[int, Field(ge=1, le=2**40)]
    """Samples per unit of weight: w = min(4096, max(1, samples // unit))."""
    opens: AwareDatetime
    deadline: AwareDatetime


class Update(Message):
    """A device's trained weights; the first of (job, round, device) counts."""

    job: Identifier
    round: Annotated[int, Field(ge=1, le=10**6)]
    attempt: Annotated[int, Field(ge=1, le=10**4)]
    base: Digest
    outcome: Literal["ok", "refused", "failed"] = "ok"
    reason: Word | None = None
    message: Line | None = None
    samples: Count = 0
    codec: Literal["f32"] = "f32"
    sha256: Digest | None = None
    """Of the vector's bytes: all tensors in byte order of their names, C order, float32 little-endian."""
    length: Count = 0
    vector: Base64 | None = None
    """The vector itself, up to `MAX_INLINE_BYTES` before base64."""
    metrics: Annotated[dict[Identifier, Annotated[float, Field(ge=-1e12, le=1e12)]], Field(max_length=32)] = {}


class Progress(Message):
    """How far training is; latest wins."""

    job: Identifier
    round: Count
    epoch: Count
    epochs: Count
    loss: float | None = None
    note: Annotated[str, StringConstraints(max_length=128)] | None = None
