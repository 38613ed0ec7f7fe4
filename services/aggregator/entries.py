"""What the ledger of a job holds, in order: `cw.rounds.{job}`. A job's state is the fold of its entries."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter

from schemas.aggregator import Artifact


class Started(BaseModel):
    """An operator started the job, or started it again."""

    entry: Literal["started"] = "started"
    at: AwareDatetime


class Opened(BaseModel):
    """An attempt at a round began; its letters carry this out."""

    entry: Literal["opened"] = "opened"
    round: int
    attempt: int
    base: Artifact
    invited: dict[str, str]
    """Device to the id of its round letter."""
    opens: AwareDatetime
    deadline: AwareDatetime


class Accepted(BaseModel):
    """An update counts. Appended before it is added to the sum."""

    entry: Literal["accepted"] = "accepted"
    round: int
    attempt: int
    device: str
    letter: str
    sha256: str
    samples: int
    w: int
    metrics: dict[str, float] = {}
    vector: str
    """Base64 of the float32 vector; the sum is rebuilt from it."""


class Refused(BaseModel):
    """An update does not count, and why."""

    entry: Literal["refused"] = "refused"
    round: int
    attempt: int
    device: str
    letter: str
    by: Literal["aggregator", "device"]
    """`device`: it answered that it does not train."""
    reason: str
    message: str = ""
    sha256: str | None = None
    final: bool
    """Whether it is this device's answer in the attempt that was open."""


class Closed(BaseModel):
    """A round is over; these are the new global weights."""

    entry: Literal["closed"] = "closed"
    round: int
    attempt: int
    weights: Artifact
    updates: int
    invited: int
    samples: int
    loss: float | None = None
    accuracy: float | None = None
    at: AwareDatetime
    took_s: float


class Ended(BaseModel):
    """The job is over: all rounds done, stopped by an operator, or failed."""

    entry: Literal["ended"] = "ended"
    state: Literal["done", "stopped", "failed"]
    reason: str | None = None
    at: AwareDatetime


Entry = Started | Opened | Accepted | Refused | Closed | Ended
_READER: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="entry")])


def read_entry(raw: bytes) -> Entry:
    """Parse an entry; raises pydantic.ValidationError."""
    return _READER.validate_json(raw)


def effect_key(job: str, entry: Entry) -> str:
    """Name of an entry's effect: JetStream and the fold take the first of each.

    An update's is (job, round, device), so a second one cannot count whatever its letter.
    """
    match entry:
        case Accepted():
            return f"{job}:{entry.round}:{entry.device}"
        case Refused():
            return f"{job}:refused:{entry.letter}"
        case Opened():
            return f"{job}:{entry.round}:{entry.attempt}:opened"
        case Closed():
            return f"{job}:{entry.round}:closed"
        case Started() | Ended():
            return f"{job}:{entry.entry}:{entry.at.isoformat()}"
