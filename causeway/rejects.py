"""What services refused, as REJECTS holds it: a bounded window of days, read without being changed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError as NoMessageError
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from schemas.envelope import parse
from schemas.errors import ContractError
from schemas.ids import Address
from schemas.topics import Channel, parse_in, parse_subject
from services.kit.bus import Bus
from services.kit.errors import NotFoundError
from services.kit.puller import scan, sequence_of, stored_s
from services.kit.rejects import MESSAGE, REASON, SUBJECT
from services.kit.streams import REJECTS

_SERVICE_LEVEL = 2


class Rejected(BaseModel):
    """One message that a service refused. What it says of itself is not verified.

    Attributes:
        id: its place in REJECTS, which `show` and `replay` take.
        service: who refused it.
        channel: `letter` or `state`.
        letter: the id that the letter gives itself, if it can be read.
    """

    id: int
    time: datetime
    service: str
    subject: str
    fleet: str | None = None
    device: str | None = None
    channel: str | None = None
    kind: str | None = None
    reason: str
    message: str
    letter: str | None = None
    bytes: int


class RejectedLetter(Rejected):
    """The same with its contents."""

    signed_by: list[str] = []
    """Ids of the keys that the envelope names."""
    body: Any = None
    """The letter itself, if it is JSON that can be written out again."""
    raw: str
    """As it came; bytes that are not text are replaced."""


class Wanted(BaseModel):
    """Which ones to list; None is any."""

    device: Address | None = None
    reason: str | None = None
    since: datetime | None = None

    def fits(self, rejected: Rejected) -> bool:
        """Whether one is asked for."""
        named = self.device is None or (rejected.fleet, rejected.device) == (self.device.fleet, self.device.device)
        return named and self.reason in {None, rejected.reason} and (self.since is None or rejected.time >= self.since)


async def list_rejected(bus: Bus, wanted: Wanted, limit: int) -> list[Rejected]:
    """The newest ones that are asked for, oldest first."""
    found: list[Rejected] = []
    async for message in scan(bus, REJECTS.name):
        time = datetime.fromtimestamp(stored_s(message), UTC)
        if wanted.since is not None and time < wanted.since:
            continue
        headers = dict(message.headers or {})
        rejected = _describe(message.subject, headers, message.data, sequence_of(message), time)
        if wanted.fits(rejected):
            found.append(rejected)
            del found[:-limit]
    return found


async def read_rejected(bus: Bus, sequence: int) -> RejectedLetter:
    """One of them, whole.

    Raises:
        NotFoundError: if there is none of this number any more.
    """
    try:
        found: RawStreamMsg = await bus.js.get_msg(REJECTS.name, seq=sequence)
    except NoMessageError as error:
        raise NotFoundError(
            f"show reject {sequence}: there is none of this number; see `causeway letters rejected`"
        ) from error
    raw = found.data or b""
    described = _describe(found.subject or "", found.headers or {}, raw, sequence, found.time or datetime.now(UTC))
    body, keys = _open(raw)
    return RejectedLetter(
        **described.model_dump(), signed_by=keys, body=_json(body), raw=raw.decode(errors="backslashreplace")
    )


def parse_since(text: str, now: datetime) -> datetime:
    """`90s`, `10min`, `2h`, `3d` ago, or a moment in ISO 8601.

    Raises:
        ValueError: if it is neither.
    """
    for suffix, seconds in (("min", 60), ("s", 1), ("h", 3_600), ("d", 86_400)):
        number = text.removesuffix(suffix)
        if number != text and number.replace(".", "", 1).isdecimal():
            return now - timedelta(seconds=float(number) * seconds)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _describe(subject: str, headers: dict[str, str], raw: bytes, sequence: int, time: datetime) -> Rejected:
    came_on = headers.get(SUBJECT, "")
    address, channel, kind = _place(came_on)
    body = _json(_open(raw)[0])
    letter = body.get("id") if isinstance(body, dict) else None
    return Rejected(
        id=sequence,
        time=time,
        service=subject.split(".")[_SERVICE_LEVEL] if subject.count(".") >= _SERVICE_LEVEL else subject,
        subject=came_on,
        fleet=address.fleet if address else None,
        device=address.device if address else None,
        channel=channel,
        kind=kind,
        reason=headers.get(REASON, "unknown"),
        message=headers.get(MESSAGE, ""),
        letter=letter if isinstance(letter, str) else None,
        bytes=len(raw),
    )


def _place(subject: str) -> tuple[Address | None, str | None, str | None]:
    try:
        kind, address = parse_in(subject)
        return address, Channel.LETTER.value, kind
    except ContractError:
        pass
    try:
        topic = parse_subject(subject)
    except ContractError:
        return None, None, None
    return topic.address, topic.channel.value, topic.kind


def _open(raw: bytes) -> tuple[bytes, list[str]]:
    try:
        envelope = parse(raw)
    except ContractError:
        return raw, []
    return envelope.body, [keyid for keyid, _ in envelope.signatures]


def _json(body: bytes) -> Any:
    try:
        found = json.loads(body)
        # As a field of a model: halves of surrogate pairs and deep nesting are read, and cannot be written.
        to_json({"body": found})
    except (ValueError, RecursionError, PydanticSerializationError):
        return None
    return found
