"""Who this device is: its keys and credentials, in one private file."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import AwareDatetime, Field, ValidationError

from edge_runtime.errors import ConfigError, EnrolError
from edge_runtime.folder import write_durable
from schemas.envelope import Signer
from schemas.events import Message
from schemas.ids import Address, Base64, Digest, Identifier, Key32, Ulid
from schemas.registry import Jwt, Pem, Token, TrustFloors, Welcome

ClientId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{16,64}$")]
MAX_TOKEN_BYTES = 65_536


class Credentials(Message):
    """What an enrolled device connects with. The JWT and the client id are secrets."""

    jwt: Jwt
    client_id: ClientId
    received: AwareDatetime
    expires: AwareDatetime

    def renew_at(self) -> datetime:
        """Half of its life."""
        return self.received + (self.expires - self.received) / 2


class Identity(Message):
    """`identity.json`."""

    v: Literal[1] = 1
    fleet: Identifier
    device: Identifier
    platform: Ulid
    url: Annotated[str, Field(max_length=255)]
    ca_pem: Annotated[str, Field(max_length=16_384)] | None = None
    root_sha256: Digest
    letter_seed: Key32
    seal_seed: Key32
    token: Token | None = None
    """The token in use, until a welcome has come."""
    enrol_id: Ulid | None = None
    """The enrol letter that the token's welcome must answer."""
    credentials: Credentials | None = None
    tuf_floors: TrustFloors | None = None
    certificate: Pem | None = None
    """Of the letter key, shown to neighbours; a device that was enrolled before there were any gets it at renewal."""
    neighbours_ca: Pem | None = None

    @classmethod
    def create(cls, token: Token) -> Self:
        """New keys for the device that a token names."""
        return cls(
            fleet=token.fleet,
            device=token.device,
            platform=token.platform,
            url=token.url,
            ca_pem=token.ca_pem,
            root_sha256=token.root_sha256,
            letter_seed=base64.b64encode(os.urandom(32)).decode(),
            seal_seed=base64.b64encode(os.urandom(32)).decode(),
            token=token,
        )

    @property
    def address(self) -> Address:
        """Fleet and device."""
        return Address(self.fleet, self.device)

    @property
    def signer(self) -> Signer:
        """The key that signs letters."""
        return Signer.from_seed(base64.b64decode(self.letter_seed))

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519 public key."""
        return self.signer.public_key

    @property
    def seal_key(self) -> bytes:
        """Raw X25519 public key."""
        return X25519PrivateKey.from_private_bytes(base64.b64decode(self.seal_seed)).public_key().public_bytes_raw()

    def renewal_due(self, now: datetime, *, neighbours: bool) -> bool:
        """Whether to ask for new credentials: at half of their life, or if `neighbours` want a certificate at all."""
        if self.credentials is None:
            return False
        return now >= self.credentials.renew_at() or (neighbours and self.certificate is None)

    def proof(self, secret: Base64) -> str:
        """That the holder of the token's secret brings these keys (schemas.registry.Enrol.proof)."""
        message = self.public_key + self.seal_key + str(self.address).encode()
        return hmac.new(base64.b64decode(secret), message, hashlib.sha256).hexdigest()

    def with_token(self, token: Token) -> Self:
        """The same keys with another token, to try again or to enrol anew."""
        return self.model_copy(
            update={
                "url": token.url,
                "ca_pem": token.ca_pem,
                "root_sha256": token.root_sha256,
                "token": token,
                "enrol_id": None,
            }
        )

    def welcomed(self, welcome: Welcome, now: datetime) -> Self:
        """Enrolled, or renewed.

        Raises:
            EnrolError: if the welcome is a refusal or lacks credentials.
        """
        if welcome.refused or not (welcome.jwt and welcome.client_id and welcome.expires):
            raise EnrolError(
                f"enrol {self.address}: the registry refused: {welcome.message or welcome.reason or 'no reason'}",
                reason=welcome.reason or "refused",
            )
        credentials = Credentials(jwt=welcome.jwt, client_id=welcome.client_id, received=now, expires=welcome.expires)
        return self.model_copy(
            update={
                "credentials": credentials,
                "token": None,
                "enrol_id": None,
                "tuf_floors": welcome.tuf_floors or self.tuf_floors,
                "certificate": welcome.certificate or self.certificate,
                "neighbours_ca": welcome.neighbours_ca or self.neighbours_ca,
            }
        )


def save_identity(path: Path, identity: Identity) -> None:
    """Store it, mode 0600; durable when this returns."""
    write_durable(path, identity.write())


def load_identity(path: Path) -> Identity | None:
    """Read it; None if this folder has no identity yet.

    Raises:
        ConfigError: if the file is there and cannot be read.
    """
    try:
        return Identity.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"read identity {path}: {error.strerror}; run as the user that owns it") from error
    except ValidationError as error:
        raise ConfigError(
            f"read identity {path}: it is damaged; move the state folder away and enrol the device anew"
        ) from error


def require_enrolled(path: Path) -> Identity:
    """The identity of an enrolled device.

    Raises:
        ConfigError: if it is not enrolled.
    """
    identity = load_identity(path)
    if identity is None or identity.credentials is None:
        raise ConfigError(
            f"open {path.parent}: this device is not enrolled; get a token from the operator "
            "(`causeway device enrol`) and run `causeway-edge enrol TOKEN`"
        )
    return identity


def read_token(path: Path, now: datetime) -> Token:
    """Read a token file.

    Raises:
        EnrolError: `token_unreadable` or `token_expired`.
    """
    try:
        with path.open("rb") as file:
            token = Token.model_validate_json(file.read(MAX_TOKEN_BYTES))
    except OSError as error:
        raise EnrolError(
            f"read token {path}: {error.strerror}; name the file that `causeway device enrol` wrote",
            reason="token_unreadable",
        ) from error
    except ValidationError as error:
        # The values stay out of the message: one of them is the secret.
        where = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}))
        raise EnrolError(
            f"read token {path}: not an enrolment token{f' (wrong: {where[:200]})' if where else ''}; "
            "get one with `causeway device enrol` and copy the file whole",
            reason="token_unreadable",
        ) from error
    if token.expires <= now:
        raise EnrolError(
            f"read token {path}: it expired at {token.expires.isoformat()}; "
            "get a new one with `causeway device enrol`, and check this device's clock",
            reason="token_expired",
        )
    return token
