"""Credentials of devices on the bus. Deterministic: the same record gives the same JWT and client id again."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

import nkeys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.ids import Address
from schemas.topics import bootstrap_permissions, device_permissions
from services.kit.credentials import BEARER_SUBSCRIPTIONS, NKey, Permissions, UserClaims, public_nkey, user_jwt
from services.kit.devices import DeviceRecord
from services.kit.neighbours import Lease

BACKDATE_S = 60
"""nats-server refuses a JWT from the future, and clocks differ."""
_CLIENT_ID_USE = b"causeway mqtt client id"


def bus_key(public_key: str) -> str:
    """Name of a device's bus user: its own public key (base64) as nkey."""
    return public_nkey(base64.b64decode(public_key), nkeys.PREFIX_BYTE_USER)


def neighbour_lease(record: DeviceRecord) -> Lease:
    """What a device's certificate for its neighbours says: it lives as long as the other credentials."""
    return Lease(
        address=record.address,
        public_key=base64.b64decode(record.public_key),
        begins=record.jwt_issued,
        ends=record.jwt_expires,
        identity=record.enrol_id,
    )


class Mint:
    """Signs with the account's key.

    MQTT client ids come from `secret`: whoever presents the id of a connected client takes over its session, so it must
    not be guessed, and a repeated welcome must name the same one.
    """

    def __init__(self, account: NKey, secret: bytes) -> None:
        self._account = account
        self._secret = hmac.digest(secret, _CLIENT_ID_USE, hashlib.sha256)

    def device_jwt(self, record: DeviceRecord) -> str:
        """The password of an enrolled device."""
        return self._bearer(
            record.address, record.bus_key, device_permissions(record.address), record.jwt_issued, record.jwt_expires
        )

    def bootstrap_jwt(self, address: Address, issued: int, expires: int) -> str:
        """The password of a device that holds a token only; its key is thrown away, since a bearer needs none."""
        raw = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
        user = public_nkey(raw, nkeys.PREFIX_BYTE_USER)
        return self._bearer(address, user, bootstrap_permissions(address), issued, expires)

    def client_id(self, address: Address, enrol_id: str) -> str:
        """MQTT client id that goes with the credentials of one enrolment; never to be logged."""
        digest = hmac.digest(self._secret, f"{address}/{enrol_id}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    @staticmethod
    def bootstrap_client_id() -> str:
        """The same for a token: random."""
        return secrets.token_urlsafe(32)

    def _bearer(
        self, address: Address, user: str, allowed: tuple[tuple[str, ...], tuple[str, ...]], issued: int, expires: int
    ) -> str:
        claims = UserClaims(
            name=str(address),
            subject=user,
            permissions=Permissions(*allowed),
            issued_at=issued,
            expires_at=expires,
            mqtt_only=True,
            bearer=True,
            subscriptions=BEARER_SUBSCRIPTIONS,
        )
        return user_jwt(self._account, claims)
