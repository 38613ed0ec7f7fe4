"""Whether letters prove that two devices speak with one key, and what follows from it. Pure."""

from __future__ import annotations

from typing import Any

from schemas.envelope import Verifier, parse
from schemas.errors import ContractError
from schemas.events import Untyped, UpLetter
from schemas.ids import Address
from services.kit.devices import DeviceRecord, Quarantine
from services.kit.errors import RefusedError

Letter = UpLetter[Untyped]


def judge(
    record: DeviceRecord, platform: str, proof: str, envelopes: list[bytes], epochs: list[str], now: float
) -> DeviceRecord:
    """The record of a device in quarantine.

    Args:
        record: as it is.
        platform: that the letters must be for.
        proof: `two_letters` of one number, or one of an `old_epoch`.
        envelopes: the letter that came last, then the one that it contradicts.
        epochs: the last letter's epoch, then the one that had spoken before it.
        now: seconds since the epoch.

    Raises:
        RefusedError: if the letters do not prove it.
    """
    try:
        letters = [_open(record, platform, raw) for raw in envelopes]
    except ContractError as error:
        raise _unproven(record.address, f"a letter of the proof is not its own: {error}") from error
    message = _two_letters(record, letters) if proof == "two_letters" else _old_epoch(record, letters, epochs)
    reason = Quarantine(
        at=now,
        reason="two_letters" if proof == "two_letters" else "old_epoch",
        message=message,
        letters=[letter.id for letter in letters],
        epochs=epochs,
    )
    return record.model_copy(
        update={"standing": "quarantined", "quarantine": reason, "owed": "device-quarantined", "online": False}
    )


def release(record: DeviceRecord, now: float) -> DeviceRecord:
    """The record of a device that may speak again.

    Raises:
        RefusedError: if it is not in quarantine.
    """
    if record.standing != "quarantined":
        raise RefusedError(f"release {record.address}: it is {record.standing}, not in quarantine")
    return record.model_copy(
        update={"standing": "enrolled", "quarantine": None, "owed": "device-released", "released_at": now}
    )


def _open(record: DeviceRecord, platform: str, raw: bytes) -> UpLetter[Any]:
    envelope = parse(raw)
    verifier = Verifier.from_base64(record.public_key)
    envelope.verify({verifier.keyid: verifier})
    letter: UpLetter[Any] = Letter.read(envelope.body)
    if letter.source != record.address.source or letter.platform != platform:
        raise _unproven(record.address, f"letter {letter.id} is of {letter.source} to platform {letter.platform}")
    return letter


def _two_letters(record: DeviceRecord, letters: list[UpLetter[Any]]) -> str:
    if len(letters) != 2:
        raise _unproven(record.address, "two letters prove it, got one")
    last, first = letters
    place = (last.epoch, last.lane, last.sequence)
    if place != (first.epoch, first.lane, first.sequence) or last.id == first.id:
        raise _unproven(record.address, f"letters {first.id} and {last.id} do not have one number and two ids")
    return (
        f"two letters have number {last.sequence} of lane {last.lane}, {first.id} and {last.id}: "
        "two devices use this key, since one never gives a number twice"
    )


def _old_epoch(record: DeviceRecord, letters: list[UpLetter[Any]], epochs: list[str]) -> str:
    last = letters[0]
    later = letters[1].epoch if len(letters) == 2 else epochs[-1]
    if last.epoch != epochs[0] or last.epoch == later or later not in epochs:
        raise _unproven(record.address, f"letter {last.id} is not of an epoch that was left")
    return (
        f"letter {last.id} goes on in epoch {last.epoch} although epoch {later} had begun: "
        "two devices use this key, since one never goes back"
    )


def _unproven(address: Address, why: str) -> RefusedError:
    return RefusedError(f"put {address} into quarantine: {why}", code="unproven")
