"""CloudEvents 1.0 in structured JSON: the form of every message, signed or not (cloudevents.io, spec v1.0.2)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from schemas.errors import MessageError
from schemas.ids import Address, Count, Identifier, Line, Ulid

MAX_STATE_BYTES = 4_096
MAX_PIECE_BYTES = 262_144
CONTRACT = 1
PLATFORM_RECIPIENT = "/platform"

_TYPE = re.compile(r"causeway\.([a-z]+)\.v([0-9]{1,4})")
_DEVICE_SOURCE = re.compile(r"/fleets/([^/]{1,63})/devices/([^/]{1,63})")
_SERVICE_SOURCE = re.compile(r"/services/([a-z]{1,32})")

Lane = Literal["control", "normal", "bulk"]
LANES: tuple[Lane, ...] = ("control", "normal", "bulk")
Source = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9/_-]{1,160}$")]
EventType = Annotated[str, StringConstraints(pattern=r"^causeway\.[a-z]{1,32}\.v[0-9]{1,4}$")]


class Message(BaseModel):
    """Base of everything on the wire: frozen, unknown fields ignored, every field bounded."""

    # Built at first use: a device never needs most of the models, and all of them take 8 MB.
    model_config = ConfigDict(
        frozen=True, extra="ignore", ser_json_inf_nan="null", allow_inf_nan=False, defer_build=True
    )

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Parse JSON.

        Raises:
            MessageError: naming the fields that do not fit; `unsupported_version` for another version of a type.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise _explain(cls.__name__, error) from error

    def write(self) -> bytes:
        """Compact JSON; absent fields are left out."""
        return self.model_dump_json(exclude_none=True).encode()


D = TypeVar("D", bound=Message)


class Event(Message, Generic[D]):
    """A CloudEvent about `data`."""

    specversion: Literal["1.0"] = "1.0"
    id: Ulid
    source: Source
    type: EventType
    time: AwareDatetime
    subject: Line | None = None
    data: D

    @property
    def kind(self) -> str:
        """Second part of the type: `causeway.{kind}.v1`."""
        return self.type.split(".")[1]


class UpLetter(Event[D], Generic[D]):
    """What a device signs. Ordered per (device, epoch, lane) by `sequence`, which starts at 1."""

    epoch: Ulid
    lane: Lane
    sequence: Annotated[int, Field(ge=1, le=2**53)]
    floor: Annotated[int, Field(ge=1, le=2**53)]
    """Lowest sequence that the outbox still holds in this lane; anything lower will never come."""
    platform: Ulid
    recipient: Source
    expires: AwareDatetime


class DownLetter(Event[D], Generic[D]):
    """What a service signs to one device. (generation, revision) orders letters of one kind and slot."""

    platform: Ulid
    recipient: Source
    expires: AwareDatetime
    generation: Count
    revision: Count
    slot: Identifier | Literal["-"]


class Untyped(Message):
    """Data whose kind is not known yet."""

    model_config = ConfigDict(frozen=True, extra="allow")


def event_type(kind: str) -> str:
    """CloudEvents type of a kind, in this version of the contract."""
    return f"causeway.{kind}.v{CONTRACT}"


def check_type(text: str, kind: str) -> None:
    """Refuse a type that is not this kind in this version.

    Raises:
        MessageError: `unsupported_version` or `wrong_kind`.
    """
    match = _TYPE.fullmatch(text)
    if match is None or match[1] != kind:
        raise MessageError(f"type {text[:80]!r} on a topic for {kind}", reason="wrong_kind")
    if int(match[2]) != CONTRACT:
        raise MessageError(
            f"type {text!r} is version {match[2]} of {kind}, this side reads {CONTRACT}: update the older side",
            reason="unsupported_version",
        )


def device_of(source: str) -> Address:
    """Sender of a device's message.

    Raises:
        MessageError: if the source is not a device.
    """
    match = _DEVICE_SOURCE.fullmatch(source)
    if match is None:
        raise MessageError(f"source {source[:160]!r} is not a device", reason="wrong_source")
    return Address(match[1], match[2])


def service_source(service: str) -> str:
    """CloudEvents source of a service."""
    return f"/services/{service}"


def service_of(source: str) -> str:
    """Name of the service that speaks.

    Raises:
        MessageError: if the source is not a service.
    """
    match = _SERVICE_SOURCE.fullmatch(source)
    if match is None:
        raise MessageError(f"source {source[:160]!r} is not a service", reason="wrong_source")
    return match[1]


def utc(timestamp: float) -> datetime:
    """Seconds since the epoch as an aware time."""
    return datetime.fromtimestamp(timestamp, UTC)


def _explain(name: str, error: ValidationError) -> MessageError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems[:3])
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return MessageError(f"{name} does not fit the contract: {shown}{more}")
