"""Who may join: the verdict on an enrol letter. Pure; the same letter twice has one effect."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime

from ulid import ULID

from schemas.bundles import check_seal_key
from schemas.errors import ContractError
from schemas.ids import Address
from schemas.registry import Enrol
from services.kit.devices import DeviceRecord, Revocation
from services.registry.minting import BACKDATE_S, bus_key
from services.registry.tokens import TokenRecord, proof


@dataclass(frozen=True, slots=True)
class Application:
    """An enrol letter whose signature by the key that it brings was checked.

    Attributes:
        stored_at: when IN took the letter; that moment decides on expiry, however late the registry reads it.
        by_current: whether the device's present key signed it too.
    """

    address: Address
    letter_id: str
    stored_at: float
    enrol: Enrol
    by_current: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What the registry knows of the name and of the key that apply.

    Attributes:
        key_owner: another device that has the same key.
    """

    token: TokenRecord | None
    record: DeviceRecord | None
    key_owner: Address | None


@dataclass(frozen=True, slots=True)
class Admit:
    """Spend the token, write the record, welcome the device."""

    record: DeviceRecord
    token: TokenRecord | None


@dataclass(frozen=True, slots=True)
class Repeat:
    """The letter had its effect: welcome the device once more, with the same credentials."""

    record: DeviceRecord


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with a reason."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Ignore:
    """A letter from before the present credentials: it had its answer then."""


Verdict = Admit | Repeat | Refuse | Ignore


def decide(application: Application, known: Known, now: int, life_s: int) -> Verdict:
    """Rule on one enrol letter; `now` in seconds since the epoch, `life_s` of the new credentials."""
    record = known.record
    if record is not None and record.enrol_id == application.letter_id:
        return Repeat(record) if record.standing == "enrolled" else _revoked(record)
    if record is not None and application.stored_at < record.enrol_stored_at:
        return Ignore()
    refusal = (
        _check_renewal(application, record) if application.enrol.token is None else _check_token(application, known)
    )
    if refusal is None and known.key_owner is not None:
        refusal = Refuse("key_in_use", "this key belongs to another device: let the device make a key of its own")
    refusal = refusal or _check_seal_key(application.enrol)
    if refusal is not None:
        return refusal
    token = known.token.model_copy(update={"used_by": application.letter_id}) if known.token else None
    return Admit(_record(application, record, now, life_s), token)


def answer_id(address: Address, letter_id: str) -> str:
    """Id of the answer to an enrol letter, the same in every repetition."""
    digest = hashlib.sha256(f"welcome {address} {letter_id}".encode()).digest()
    return str(ULID.from_bytes(ULID.from_str(letter_id).bytes[:6] + digest[:10]))


def live_revocations(records: list[DeviceRecord], now: int) -> dict[str, int]:
    """Bus users whose JWTs are void up to a time, without those that have ended anyway."""
    void: dict[str, int] = {}
    for record in records:
        for entry in record.revocations:
            if entry.expires > now:
                void[entry.bus_key] = max(entry.at, void.get(entry.bus_key, 0))
    return void


def revoke(record: DeviceRecord, now: float) -> DeviceRecord:
    """The record of a device that may speak no more."""
    entry = Revocation(bus_key=record.bus_key, at=int(now), expires=record.jwt_expires)
    return record.model_copy(
        update={
            "standing": "revoked",
            "online": False,
            "revoked_at": now,
            "quarantine": None,
            "owed": "device-revoked",
            "revocations": [*_live(record, int(now)), entry],
        }
    )


def _check_renewal(application: Application, record: DeviceRecord | None) -> Refuse | None:
    if record is None:
        return Refuse(
            "token_unknown", "no such device is enrolled and the letter names no token: enrol it with a token"
        )
    if record.standing != "enrolled":
        return _revoked(record)
    if not application.by_current:
        return Refuse("bad_proof", "only the key that is enrolled may renew: sign with it, or enrol with a new token")
    return None


def _check_token(application: Application, known: Known) -> Refuse | None:
    token, enrol = known.token, application.enrol
    if token is None or token.address != application.address:
        return Refuse("token_unknown", "there is no such token for this device: make one with `causeway device enrol`")
    expected = proof(token.secret, enrol.public_key, enrol.seal_key, application.address)
    if not hmac.compare_digest(expected, enrol.proof or ""):
        return Refuse(
            "bad_proof",
            "the proof was not made with this token's secret for these keys: make a new token with "
            "`causeway device enrol`",
        )
    if token.used_by not in {None, application.letter_id}:
        return Refuse("token_used", "the token was used before: make a new one with `causeway device enrol`")
    if token.expires <= application.stored_at:
        return Refuse("token_expired", "the token has expired: make a new one with `causeway device enrol`")
    return _check_name(application, token, known.record) if known.record is not None else None


def _check_name(application: Application, token: TokenRecord, record: DeviceRecord) -> Refuse | None:
    if record.standing != "enrolled":
        # A token made since is the operator's leave to come back.
        since = record.quarantine.at if record.quarantine is not None else record.revoked_at or 0.0
        return None if token.made_at > since else _revoked(record)
    if record.public_key != application.enrol.public_key and not application.by_current:
        return Refuse(
            "already_enrolled",
            "a device of this name is enrolled with another key: revoke it first, then make a new token",
        )
    return None


def _check_seal_key(enrol: Enrol) -> Refuse | None:
    try:
        check_seal_key(base64.b64decode(enrol.seal_key))
    except ContractError as error:
        return Refuse(error.reason, str(error))
    return None


def _revoked(record: DeviceRecord) -> Refuse:
    return Refuse(record.standing, f"the device is {record.standing}: only an operator's new token lets it in again")


def _record(application: Application, before: DeviceRecord | None, now: int, life_s: int) -> DeviceRecord:
    enrol, address = application.enrol, application.address
    user = bus_key(enrol.public_key)
    revocations = _live(before, now)
    # Of two bodies in quarantine the one that was not enrolled anew is cut off by this.
    if before is not None and before.standing != "revoked" and before.bus_key != user:
        revocations.append(Revocation(bus_key=before.bus_key, at=now, expires=before.jwt_expires))
    void_until = max((entry.at for entry in revocations if entry.bus_key == user), default=0)
    return DeviceRecord(
        fleet=address.fleet,
        device=address.device,
        public_key=enrol.public_key,
        seal_key=enrol.seal_key,
        trust_level=before.trust_level if before else "enrolled",
        capabilities=enrol.capabilities,
        labels=before.labels if before else {},
        enrol_id=application.letter_id,
        bus_key=user,
        jwt_issued=max(now - BACKDATE_S, void_until + 1),
        jwt_expires=now + life_s,
        enrolled_at=datetime.fromtimestamp(now, UTC).isoformat(),
        enrol_stored_at=application.stored_at,
        revocations=revocations,
        released_at=now if before and before.quarantine else before.released_at if before else None,
        online=before.online if before else False,
    )


def _live(record: DeviceRecord | None, now: int) -> list[Revocation]:
    return [entry for entry in record.revocations if entry.expires > now] if record else []
