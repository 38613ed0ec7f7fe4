"""Enrolment tokens: what the device carries, what the registry keeps, and the proof that joins the two. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel

from schemas.ids import Address
from schemas.registry import Token

SECRET_BYTES = 32


class TokenRecord(BaseModel):
    """Bucket `tokens`, key = id. Stored encrypted (`store.py`): an HMAC needs the secret as it is."""

    token: str
    fleet: str
    device: str
    secret: str
    made_at: float
    expires: float
    used_by: str | None = None
    """The enrol letter that it was spent on."""

    @property
    def address(self) -> Address:
        """The one device that may use it."""
        return Address(self.fleet, self.device)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token leads: the same for every token of a platform."""

    url: str
    ca_pem: str | None
    platform: str
    root_sha256: str


@dataclass(frozen=True, slots=True)
class Admission:
    """What is new in each token: its name, its secret and the credentials that last until enrolment."""

    token: str
    secret: bytes
    jwt: str
    client_id: str


def make_token(
    place: Place, address: Address, admission: Admission, now: float, expires: int
) -> tuple[Token, TokenRecord]:
    """The file for the device, and the record for the registry."""
    secret = base64.b64encode(admission.secret).decode()
    token = Token(
        url=place.url,
        ca_pem=place.ca_pem,
        platform=place.platform,
        fleet=address.fleet,
        device=address.device,
        root_sha256=place.root_sha256,
        secret=secret,
        expires=datetime.fromtimestamp(expires, UTC),
        token=admission.token,
        bootstrap_jwt=admission.jwt,
        client_id=admission.client_id,
    )
    record = TokenRecord(
        token=admission.token,
        fleet=address.fleet,
        device=address.device,
        secret=secret,
        made_at=now,
        expires=expires,
    )
    return token, record


def proof(secret: str, public_key: str, seal_key: str, address: Address) -> str:
    """HMAC-SHA256 in hex that binds a device's keys (all in base64) and its name to a token's secret."""
    bound = base64.b64decode(public_key) + base64.b64decode(seal_key) + str(address).encode()
    return hmac.new(base64.b64decode(secret), bound, hashlib.sha256).hexdigest()
