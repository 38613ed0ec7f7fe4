"""NATS identities: nkeys and the JWTs of operator, accounts and users (ADR-14 of NATS)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nkeys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.kit.errors import SettingsError

BEARER_SUBSCRIPTIONS = 8
_UNLIMITED = -1


class NKey:
    """An Ed25519 key with its NATS role; signs on the raw seed, which is far faster than through nkeys."""

    def __init__(self, seed: bytes, prefix: int) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._seed = seed
        self._prefix = prefix
        self.public = public_nkey(self._key.public_key().public_bytes_raw(), prefix)

    @classmethod
    def generate(cls, prefix: int) -> NKey:
        """A new random key of a role."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw(), prefix)

    @classmethod
    def load(cls, path: Path) -> NKey:
        """Read a seed file.

        Raises:
            SettingsError: if it is missing or not a seed.
        """
        try:
            prefix, raw = nkeys.decode_seed(path.read_bytes().strip())
        except (OSError, nkeys.NkeysError) as error:
            raise SettingsError(f"read nkey {path}: {error or type(error).__name__}; was it moved away?") from error
        return cls(bytes(raw)[:32], prefix)

    @property
    def seed_text(self) -> bytes:
        """The seed in its usual form (`SU...`); a secret."""
        encoded: bytes = nkeys.encode_seed(self._seed, self._prefix)
        return encoded

    def sign(self, message: bytes) -> bytes:
        """64 bytes of signature."""
        return self._key.sign(message)


def public_nkey(raw: bytes, prefix: int) -> str:
    """A public key of 32 bytes in NATS' base32 form."""
    head = bytes([prefix]) + raw
    checksum: bytes = bytes(nkeys.crc16_checksum(bytearray(head)))
    return base64.b32encode(head + checksum).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects that a user may publish and subscribe to; nothing else is allowed.

    `forbidden` is cut out of `publish`.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    allow_responses: bool = False
    forbidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserClaims:
    """What a user's JWT says."""

    name: str
    subject: str
    permissions: Permissions
    issued_at: int
    expires_at: int | None = None
    mqtt_only: bool = False
    bearer: bool = False
    subscriptions: int = _UNLIMITED


@dataclass(frozen=True, slots=True)
class AccountClaims:
    """What an account's JWT says; `revocations` maps user keys to the time up to which their JWTs are void."""

    name: str
    subject: str
    issued_at: int
    jetstream: bool
    revocations: Mapping[str, int] = field(default_factory=dict)


def operator_jwt(operator: NKey, system_account: str, issued_at: int) -> str:
    """Self-signed JWT of the operator."""
    nats = {"type": "operator", "version": 2, "system_account": system_account}
    return _sign(operator, operator.public, "causeway", issued_at, nats)


def account_jwt(operator: NKey, claims: AccountClaims) -> str:
    """JWT of an account, signed by the operator."""
    limits: dict[str, Any] = dict.fromkeys(
        ("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED
    )
    limits["wildcards"] = True
    stored = _UNLIMITED if claims.jetstream else 0
    limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), stored)
    nats = {
        "type": "account",
        "version": 2,
        "limits": limits,
        "default_permissions": {"pub": {}, "sub": {}},
        "revocations": dict(claims.revocations),
    }
    return _sign(operator, claims.subject, claims.name, claims.issued_at, nats)


def user_jwt(account: NKey, claims: UserClaims) -> str:
    """JWT of a service or device, signed by the account. A bearer JWT is the password itself."""
    permissions = claims.permissions
    nats: dict[str, Any] = {
        "type": "user",
        "version": 2,
        "pub": _allow(permissions.publish),
        "sub": _allow(permissions.subscribe),
        "subs": claims.subscriptions,
        "data": _UNLIMITED,
        "payload": _UNLIMITED,
    }
    if permissions.forbidden:
        nats["pub"]["deny"] = sorted({*nats["pub"].get("deny", ()), *permissions.forbidden})
    if permissions.allow_responses:
        nats["resp"] = {"max": 1, "ttl": 120_000_000_000}
    if claims.bearer:
        nats["bearer_token"] = True
    # Without a list every kind of connection is allowed.
    nats["allowed_connection_types"] = ["MQTT"] if claims.mqtt_only else ["STANDARD"]
    return _sign(account, claims.subject, claims.name, claims.issued_at, nats, claims.expires_at)


def decode_jwt(text: str) -> dict[str, Any]:
    """Claims of a JWT, unverified."""
    claims: dict[str, Any] = json.loads(_from_url64(text.split(".")[1]))
    return claims


def verified_jwt(text: str, issuer: str) -> dict[str, Any] | None:
    """Claims of a JWT that this public key (`A...`) has signed; None for anything else."""
    signed, _, signature = text.rpartition(".")
    try:
        raw = base64.b32decode(issuer + "=" * (-len(issuer) % 8))[1:33]
        Ed25519PublicKey.from_public_bytes(raw).verify(_from_url64(signature), signed.encode())
        return decode_jwt(text)
    except (InvalidSignature, ValueError, IndexError):
        return None


def creds_text(jwt: str, seed: bytes) -> bytes:
    """A credentials file as NATS tools read it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    ).encode()


def _allow(subjects: Iterable[str]) -> dict[str, list[str]]:
    listed = sorted(subjects)
    # An empty allow list would mean "everything".
    return {"allow": listed} if listed else {"deny": [">"]}


def _sign(
    issuer: NKey, subject: str, name: str, issued_at: int, nats: Mapping[str, Any], expires_at: int | None = None
) -> str:
    claims: dict[str, Any] = {"iat": issued_at, "iss": issuer.public, "name": name, "sub": subject, "nats": nats}
    if expires_at is not None:
        claims["exp"] = expires_at
    plain = json.dumps(claims, separators=(",", ":"), sort_keys=True).encode()
    claims["jti"] = base64.b32encode(hashlib.new("sha512_256", plain).digest()).rstrip(b"=").decode()
    header = _url64(b'{"typ":"JWT","alg":"ed25519-nkey"}')
    body = _url64(json.dumps(claims, separators=(",", ":"), sort_keys=True).encode())
    signed = f"{header}.{body}"
    return f"{signed}.{_url64(issuer.sign(signed.encode()))}"


def _url64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_url64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
