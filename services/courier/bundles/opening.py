"""Whether a fragment is what it claims to be, and which letters an opened bundle brings. Pure."""

from __future__ import annotations

from schemas.bundles import Contents, Parcel, to_platform
from schemas.errors import ContractError, MessageError
from schemas.events import device_of
from schemas.ids import Address
from schemas.topics import Channel, Topic
from services.courier.up.carried import CarriedLetter
from services.courier.up.verifying import Devices, verifier_of


def check_parcel(parcel: Parcel, devices: Devices, platform: str, waited_s: float) -> tuple[Address, float]:
    """Refuse a fragment that is not from a device to this platform, or too old.

    Args:
        parcel: a fragment.
        devices: who may speak.
        platform: this one.
        waited_s: since its last carrier handed it over.

    Returns:
        Its origin, and the rest of its lifetime in seconds.

    Raises:
        ContractError: `wrong_platform`, `wrong_recipient`, `wrong_source`, `unknown_device`, the device's standing,
            `unknown_key`, `bad_signature` or `expired`.
    """
    head = parcel.head
    if head.platform != platform:
        raise MessageError(
            f"bundle {head.id} is for platform {head.platform}, this is {platform}", reason="wrong_platform"
        )
    if not to_platform(head):
        raise MessageError(
            f"bundle {head.id} is for {head.destination}, not for the platform", reason="wrong_recipient"
        )
    origin = device_of(head.origin)
    verifier = verifier_of(devices, origin)
    parcel.envelope.verify({verifier.keyid: verifier})
    age_s = parcel.way.age_s + max(0.0, waited_s)
    if age_s >= head.lifetime_s:
        raise MessageError(
            f"bundle {head.id} of {origin} was {age_s:.0f} s on its way, its origin gave it {head.lifetime_s} s",
            reason="expired",
        )
    return origin, head.lifetime_s - age_s


def letters_of(
    contents: Contents, origin: Address
) -> tuple[list[CarriedLetter], list[tuple[CarriedLetter, ContractError]]]:
    """The letters as if they had come over the bus, in their order; and those that no topic could have brought."""
    good: list[CarriedLetter] = []
    bad: list[tuple[CarriedLetter, ContractError]] = []
    for letter in contents.letters:
        raw = letter.envelope.encode()
        try:
            good.append(CarriedLetter(Topic(origin, Channel.LETTER, letter.kind).subject, raw))
        except ContractError as error:
            bad.append((CarriedLetter(bundle_subject(origin), raw), error))
    return good, bad


def bundle_subject(address: Address) -> str:
    """Where a device publishes its bundles."""
    return Topic(address, Channel.LETTER, "bundle").subject
