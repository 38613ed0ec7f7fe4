"""Messages of the courier: what both ends know of each other's letters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from schemas.depot import TrustState
from schemas.events import Lane, Message
from schemas.ids import Count, Line, Ulid, Word

Marks = Annotated[dict[Lane, Count], Field(max_length=3)]
"""Highest sequence per lane; a lane that never spoke is absent."""

Heads = Annotated[dict[Lane, Ulid], Field(max_length=3)]
"""Ids of letters by lane."""

MAX_GOT = 256


class Clock(Message):
    """What the device knows of the time."""

    synchronised: bool
    floor: AwareDatetime | None = None


class Hello(Message):
    """First word of a connection; nothing else is sent until its receipt has come."""

    session: Ulid
    epoch: Ulid
    sent: Marks
    """Highest sequence ever issued."""
    marks: Marks
    """Highest sequence known to be receipted."""
    held: Annotated[list[Ulid], Field(max_length=64)] = []
    """Newest letters down that are on disk already."""
    trust: TrustState | None = None
    agent: Annotated[str, StringConstraints(max_length=64)]
    clock: Clock


class Got(Message):
    """Letters down that the device holds on disk."""

    ids: Annotated[list[Ulid], Field(min_length=1, max_length=MAX_GOT)]


LossReason = Literal["evicted", "expired", "superseded", "renumbered", "disk", "unsendable"]


class LostLetter(Message):
    """One letter that was given up, by name."""

    id: Ulid
    kind: Word
    sequence: Count


class Loss(Message):
    """Consecutive sequences of a lane that will never come, and why."""

    epoch: Ulid
    lane: Lane
    first: Annotated[int, Field(ge=1, le=2**53)]
    last: Annotated[int, Field(ge=1, le=2**53)]
    reason: LossReason
    letters: Count
    """How many were really letters; a number that was renumbered lost none."""
    maybe_arrived: bool = False
    """They may have been sent before they were given up, so some may be in IN all the same."""
    names: Annotated[list[LostLetter], Field(max_length=256)] = []
    """As many as the device could remember."""


class Losses(Message):
    """Data of a letter `losses`: the device's loss ledger, what is new in it."""

    losses: Annotated[list[Loss], Field(min_length=1, max_length=64)]


class Suspension(Message):
    """Why the letters of a device are not taken for now."""

    since: AwareDatetime
    message: Line


class Receipt(Message):
    """Everything up to these marks is stored in IN. Signed by the courier, bound to one session."""

    session: Ulid
    epoch: Ulid
    marks: Marks
    heads: Heads = {}
    """The letter at each mark, where the courier knows it: a device that holds another one under that number never sent
    what the mark counts, so its letters up to the mark still wait (decision 0016)."""
    suspended: Suspension | None = None
    """The device is in quarantine: nothing beyond the marks is stored until an operator decides."""
