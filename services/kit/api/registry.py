"""Verbs of the registry: token, list, show, revoke."""

from __future__ import annotations

from pydantic import BaseModel, Field

from schemas.ids import Identifier
from schemas.registry import Capabilities, Heartbeat
from services.kit.devices import Standing

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
    """`show` and `revoke`: one device."""

    fleet: Identifier
    device: Identifier


class DeviceView(BaseModel):
    """What `list` and `show` answer per device."""

    fleet: str
    device: str
    standing: Standing
    trust_level: str
    online: bool
    last_seen: float | None = None
    """Seconds since the epoch of the last word; absent if there was none since the registry started."""
    enrolled_at: str
    jwt_expires: int
    capabilities: Capabilities
    labels: dict[str, str] = {}
    heartbeat: Heartbeat | None = None
    """Left out of a list of more than 500 devices."""


class DeviceFact(BaseModel):
    """Events `device-enrolled`, `device-renewed` and `device-revoked`."""

    fleet: str
    device: str
    enrol_id: str


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
