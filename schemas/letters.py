"""Writing, reading and checking letters: a CloudEvent inside an envelope, one data model per kind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from schemas import aggregator, bundles, courier, depot, ota, registry, scheduler
from schemas.envelope import Envelope, Signer, seal
from schemas.errors import MessageError
from schemas.events import (
    MAX_STATE_BYTES,
    PLATFORM_RECIPIENT,
    DownLetter,
    Event,
    Lane,
    Message,
    Untyped,
    UpLetter,
    check_type,
    event_type,
    service_source,
)
from schemas.ids import Address

UP_DATA: dict[str, type[Message]] = {
    "enrol": registry.Enrol,
    "report": ota.Report,
    "result": scheduler.Result,
    "update": aggregator.Update,
    "sample": Untyped,
    "event": registry.EventReport,
    "losses": courier.Losses,
    "bundle": bundles.BundleLetter,
}
DOWN_DATA: dict[str, type[Message]] = {
    "welcome": registry.Welcome,
    "assign": ota.Assign,
    "config": registry.Twin,
    "task": scheduler.Task,
    "round": aggregator.Round,
    "cancel": scheduler.Cancel,
    "recall": registry.Recall,
    "receipt": courier.Receipt,
}
STATE_DATA: dict[str, type[Message]] = {
    "heartbeat": registry.Heartbeat,
    "hello": courier.Hello,
    "gone": registry.Gone,
    "progress": aggregator.Progress,
    "got": courier.Got,
}
PARCEL_DATA: dict[str, type[Message]] = {"want": depot.Want}

_KIND = re.compile(rb'"type":\s*"causeway\.([a-z]{1,32})\.v[0-9]{1,4}"')


@cache
def up_model(kind: str) -> Any:
    """Model of a letter up; raises MessageError `wrong_kind`. Made at first use, since a device reads none of them."""
    return UpLetter[_data(UP_DATA, kind)]  # type: ignore[misc]


@cache
def down_model(kind: str) -> Any:
    """Model of a letter down. Raises as `up_model`."""
    return DownLetter[_data(DOWN_DATA, kind)]  # type: ignore[misc]


@cache
def state_model(kind: str) -> Any:
    """Model of a state message. Raises as `up_model`."""
    return Event[_data(STATE_DATA, kind)]  # type: ignore[misc]


def _data(models: dict[str, type[Message]], kind: str) -> type[Message]:
    model = models.get(kind)
    if model is None:
        raise MessageError(f"there is no kind {kind[:40]!r} here", reason="wrong_kind")
    return model


@dataclass(frozen=True, slots=True)
class Place:
    """Where a letter up stands in its device's outbox."""

    epoch: str
    lane: Lane
    sequence: int
    floor: int


def write_up(
    kind: str,
    data: Message,
    place: Place,
    *,
    letter_id: str,
    address: Address,
    platform: str,
    time: datetime,
    expires: datetime,
    signer: Signer,
) -> bytes:
    """Sign a device's letter.

    Raises:
        EnvelopeError: `oversized` above 64 KiB.
    """
    letter = UpLetter[Message](
        id=letter_id,
        source=address.source,
        type=event_type(kind),
        time=time,
        data=data,
        epoch=place.epoch,
        lane=place.lane,
        sequence=place.sequence,
        floor=place.floor,
        platform=platform,
        recipient=PLATFORM_RECIPIENT,
        expires=expires,
    )
    return seal(_dump(letter), signer)


def write_down(
    kind: str,
    data: Message,
    *,
    letter_id: str,
    service: str,
    address: Address,
    platform: str,
    time: datetime,
    expires: datetime,
    generation: int,
    revision: int,
    slot: str,
    signer: Signer,
) -> bytes:
    """Sign a service's letter to one device. Raises as `write_up`."""
    letter = DownLetter[Message](
        id=letter_id,
        source=service_source(service),
        type=event_type(kind),
        time=time,
        data=data,
        platform=platform,
        recipient=address.source,
        expires=expires,
        generation=generation,
        revision=revision,
        slot=slot,
    )
    return seal(_dump(letter), signer)


def write_state(kind: str, data: Message, *, event_id: str, address: Address, time: datetime) -> bytes:
    """An unsigned state message.

    Raises:
        MessageError: `oversized` above 4 KiB.
    """
    event = Event[Message](id=event_id, source=address.source, type=event_type(kind), time=time, data=data)
    raw = _dump(event)
    if len(raw) > MAX_STATE_BYTES:
        raise MessageError(f"{kind} of {len(raw)} bytes exceeds {MAX_STATE_BYTES}", reason="oversized")
    return raw


def read_up(body: bytes, kind: str) -> UpLetter[Any]:
    """Parse the signed bytes of a letter up.

    Raises:
        MessageError: if they are not a letter of this kind in this version.
    """
    letter: UpLetter[Any] = _read(up_model(kind), body, kind)
    return letter


def read_down(body: bytes, kind: str) -> DownLetter[Any]:
    """Parse the signed bytes of a letter down. Raises as `read_up`."""
    letter: DownLetter[Any] = _read(down_model(kind), body, kind)
    return letter


def read_state(body: bytes, kind: str) -> Event[Any]:
    """Parse a state message. Raises as `read_up`; `oversized` above 4 KiB."""
    if len(body) > MAX_STATE_BYTES:
        raise MessageError(f"{kind} of {len(body)} bytes exceeds {MAX_STATE_BYTES}", reason="oversized")
    event: Event[Any] = _read(state_model(kind), body, kind)
    return event


def check_up(letter: UpLetter[Any], address: Address, platform: str, now: datetime) -> None:
    """Refuse a letter that is not from this device to this platform, or that is too old.

    Raises:
        MessageError: `wrong_source`, `wrong_platform`, `wrong_recipient` or `expired`.
    """
    if letter.source != address.source:
        raise MessageError(f"letter of {letter.source} on the topic of {address.source}", reason="wrong_source")
    _check_bounds(letter, PLATFORM_RECIPIENT, platform, now)


def check_down(letter: DownLetter[Any], address: Address, platform: str, now: datetime) -> None:
    """Refuse a letter that is not to this device of this platform, or that is too old. Raises as `check_up`."""
    _check_bounds(letter, address.source, platform, now)


def kind_of(envelope: Envelope) -> str:
    """Kind that the body claims, before it is parsed whole; empty if none."""
    match = _KIND.search(envelope.body)
    return match[1].decode() if match else ""


def _check_bounds(letter: UpLetter[Any] | DownLetter[Any], recipient: str, platform: str, now: datetime) -> None:
    if letter.platform != platform:
        raise MessageError(
            f"letter {letter.id} is for platform {letter.platform}, this is {platform}", reason="wrong_platform"
        )
    if letter.recipient != recipient:
        raise MessageError(
            f"letter {letter.id} is addressed to {letter.recipient}, not to {recipient}", reason="wrong_recipient"
        )
    if letter.expires <= now:
        raise MessageError(f"letter {letter.id} expired at {letter.expires.isoformat()}", reason="expired")


def _read(model: Any, body: bytes, kind: str) -> Any:
    try:
        event = model.read(body)
    except MessageError:
        # Another version may well have another shape; say so rather than list its fields.
        check_type(_claimed_type(body), kind)
        raise
    check_type(event.type, kind)
    return event


def _claimed_type(body: bytes) -> str:
    match = re.search(rb'"type":\s*"([^"]{1,80})"', body)
    return match[1].decode(errors="replace") if match else ""


def _dump(event: Event[Any]) -> bytes:
    return event.model_dump_json(exclude_none=True, by_alias=True, serialize_as_any=True).encode()
