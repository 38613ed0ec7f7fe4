"""Verbs of the registry: token, list, show, revoke, quarantine, release, recall."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from schemas.courier import Loss, LossReason
from schemas.envelope import MAX_LETTER_BYTES
from schemas.events import Lane
from schemas.ids import Identifier, Ulid
from schemas.registry import Capabilities, Heartbeat
from services.kit.devices import Quarantine, Standing

DAY_S = 86_400.0


class TokenRequest(BaseModel):
    """`token`: make an enrolment token. Answers with `schemas.registry.Token`."""

    fleet: Identifier
    device: Identifier
    ttl_s: float = Field(DAY_S, gt=0, le=30 * DAY_S)


class ListRequest(BaseModel):
    """`list`: every device of a fleet, or of all, in the order of `fleet/device`.

    An answer holds as many as fit into one message; ask again with `after` until it is empty, as `kit.fleet` does.
    """

    fleet: Identifier | None = None
    after: str | None = Field(None, max_length=128, pattern=r"^[A-Za-z0-9_-]+/[A-Za-z0-9_-]+$")


class DeviceRequest(BaseModel):
    """`show`, `revoke` and `release`: one device."""

    fleet: Identifier
    device: Identifier


class QuarantineRequest(BaseModel):
    """`quarantine`: the courier has proof that two devices speak with one key. The registry verifies it."""

    fleet: Identifier
    device: Identifier
    proof: Literal["two_letters", "old_epoch"]
    letters: list[Annotated[str, StringConstraints(max_length=2 * MAX_LETTER_BYTES)]] = Field(
        min_length=1, max_length=2
    )
    """Envelopes in base64: the letter that came last, then the one that it contradicts, if it is at hand."""
    epochs: list[Ulid] = Field(min_length=1, max_length=8)
    """The contradicting letter's epoch, then the one that spoke before it."""


class RecallRequest(BaseModel):
    """`recall`: have a device send again what it keeps. Answers with `RecallView`."""

    fleet: Identifier
    device: Identifier
    lane: Lane | None = None
    """Absent: all."""
    first: int = Field(1, ge=1, le=2**53)
    """From this sequence on."""
    force: bool = False
    """Also what IN holds; it then holds it twice, with one effect."""


class RecalledLane(BaseModel):
    """One lane of a recall: what its mark was and is, and the sequence that the device sends again from."""

    lane: Lane
    mark: int
    lowered_to: int
    held_to: int
    """Highest sequence from the asked one on that IN holds; 0 if none."""


class RecallView(BaseModel):
    """What `recall` answers."""

    fleet: str
    device: str
    epoch: str
    lanes: list[RecalledLane]
    letters: list[str] = []
    """Ids of the recall letters in the device's mailbox."""


class LossTotals(BaseModel):
    """What a device gave up, by its own letters."""

    letters: dict[LossReason, int] = {}
    """How many, by reason."""
    maybe_arrived: int = 0
    """How many of them may have been sent before they were given up, so that IN may hold them all the same."""
    newest: list[Loss] = []
    """The last ranges that were told, newest first, with some of their names."""


class DeviceView(BaseModel):
    """What `list` and `show` answer per device."""

    fleet: str
    device: str
    standing: Standing
    trust_level: str
    quarantine: Quarantine | None = None
    online: bool
    last_seen: float | None = None
    """Seconds since the epoch of the last word; absent if there was none since the registry started."""
    enrolled_at: str
    jwt_expires: int
    capabilities: Capabilities
    labels: dict[str, str] = {}
    heartbeat: Heartbeat | None = None
    """Left out of a list of more than 500 devices."""
    losses: LossTotals | None = None
    """`show` alone; absent if it lost nothing."""


class DeviceFact(BaseModel):
    """Events `device-enrolled`, `device-renewed` and `device-revoked`."""

    fleet: str
    device: str
    enrol_id: str


class QuarantineFact(BaseModel):
    """Events `device-quarantined`, with its reason, and `device-released`."""

    fleet: str
    device: str
    quarantine: Quarantine | None = None


class DeviceLosses(BaseModel):
    """Event `device-losses`: letters that a device gave up, by name; `letter` is the id of the letter that tells it."""

    fleet: str
    device: str
    letter: str
    losses: list[Loss]


class DeviceEvent(BaseModel):
    """Event `device-event`: what a device reported; `letter` is its letter's id, the same in a repetition."""

    fleet: str
    device: str
    letter: str
    time: str
    name: str
    severity: str
    reason: str | None = None
    message: str
    details: dict[str, str | int | float | bool] = {}
