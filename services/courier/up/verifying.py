"""Whether a letter is what it claims to be: the decision before it is ordered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, cast

from pydantic import AwareDatetime

from schemas.envelope import Envelope, Verifier, parse
from schemas.errors import ContractError, MessageError
from schemas.events import EventType, Lane, Message, Source, UpLetter
from schemas.ids import Address, Count, Ulid
from schemas.letters import check_up, read_up
from schemas.topics import in_pattern, parse_subject
from services.courier.up.ordering import LaneKey, Slip
from services.kit.devices import DeviceRecord

ENROL = "enrol"
_ENROLS = in_pattern(ENROL).removesuffix(">")
SPENT = frozenset({"malformed", "unsupported_version"})
"""Refusals that no repetition of the letter can mend; it must not block those behind it."""


class Devices(Protocol):
    """The part of the device book that verification needs."""

    def verifier(self, address: Address) -> Verifier | None:
        """Key of a device that may speak."""

    def get(self, address: Address) -> DeviceRecord | None:
        """Record of a device, whatever its standing."""


class Stamp(Message):
    """A letter without its data, for one whose data does not fit."""

    id: Ulid
    source: Source
    type: EventType
    epoch: Ulid
    lane: Lane
    sequence: Count
    floor: Count
    platform: Ulid
    recipient: Source
    expires: AwareDatetime


@dataclass(frozen=True, slots=True)
class Opened:
    """A letter whose sender is proven.

    Attributes:
        letter_id: what the letter calls itself; the same in every copy of it.
        refusal: why it must be set aside instead of handed on, once it is its turn; None for a good letter.
        carried: it did not come straight from its device, so what it says of epochs may be old news.
        stranger: an enrol letter by another key than the device's present one; it proves only itself.
    """

    address: Address
    kind: str
    slip: Slip
    envelope: bytes
    letter_id: str
    refusal: ContractError | None = None
    stranger: bool = False
    carried: bool = False


def open_letter(raw: bytes, subject: str, devices: Devices, platform: str, now: datetime) -> Opened:
    """Verify one letter.

    Raises:
        ContractError: with the reason of the refusal; the letter says nothing reliable, not even its sequence.
    """
    topic = parse_subject(subject)
    address, kind = topic.address, topic.kind
    envelope = parse(raw)
    if kind == ENROL:
        letter = read_up(envelope.body, ENROL)
        stranger = _check_enrol(envelope, letter, devices.get(address))
        check_up(letter, address, platform, now)
        return Opened(address, kind, _slip(letter, address), raw, letter.id, stranger=stranger)
    verifier = verifier_of(devices, address)
    envelope.verify({verifier.keyid: verifier})
    stamp: UpLetter[Any] | Stamp
    refusal = None
    try:
        stamp = read_up(envelope.body, kind)
    except MessageError as error:
        if error.reason not in SPENT:
            raise
        stamp, refusal = _stamp(envelope, kind, error), error
    check_up(cast("UpLetter[Any]", stamp), address, platform, now)
    return Opened(address, kind, _slip(stamp, address), raw, stamp.id, refusal=refusal)


def is_voice(subject: str, way: str | None) -> bool:
    """Whether a letter in IN says in which epoch its device speaks; an enrol letter may be another's."""
    return way is None and not subject.startswith(_ENROLS)


def _check_enrol(envelope: Envelope, letter: UpLetter[Any], present: DeviceRecord | None) -> bool:
    brought = Verifier.from_base64(letter.data.public_key)
    envelope.verify({brought.keyid: brought})
    # The key of a device that may not speak at present is its key all the same.
    return present is not None and present.public_key != letter.data.public_key


def verifier_of(devices: Devices, address: Address) -> Verifier:
    """Key of a device that may speak.

    Raises:
        ContractError: `unknown_device`, or its standing if that is not `enrolled`.
    """
    verifier = devices.verifier(address)
    if verifier is not None:
        return verifier
    record = devices.get(address)
    if record is None:
        raise ContractError(
            f"device {address} is not enrolled, or its record is still on its way; it sends again",
            reason="unknown_device",
        )
    raise ContractError(f"device {address} is {record.standing}: its letters are not taken", reason=record.standing)


def _stamp(envelope: Envelope, kind: str, error: MessageError) -> Stamp:
    try:
        stamp = Stamp.read(envelope.body)
    except MessageError:
        raise error from None
    if stamp.type.split(".")[1] != kind:
        raise error
    return stamp


def _slip(letter: UpLetter[Any] | Stamp, address: Address) -> Slip:
    try:
        return Slip(LaneKey(address.fleet, address.device, letter.epoch, letter.lane), letter.sequence, letter.floor)
    except ValueError as error:
        raise MessageError(str(error)) from error
