"""Who was turned away at the door: nats-server's own word on refused and ended connections, counted and logged.

A device that gets no connection cannot say so, and nats-server's log must not name it (it knows the client id). Neither
the JWT nor the client id of an event is ever logged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from nats.aio.msg import Msg

from schemas.errors import TopicError
from schemas.ids import Address
from services.kit.bus import Bus
from services.kit.credentials import verified_jwt
from services.kit.devices import DeviceRecord
from services.kit.rejects import REJECTED
from services.registry.telemetry import Allowance

log = structlog.get_logger()

SERVICE = "registry"
REFUSED_SUBJECT = "$SYS.SERVER.*.CLIENT.AUTH.ERR"
ENDED_SUBJECT = "$SYS.ACCOUNT.*.DISCONNECT"
ENDINGS = {
    "Authentication Expired": "expired",
    "Credentials Revoked": "revoked",
    "Maximum Payload Exceeded": "oversized",
    "Protocol Violation": "bad_topic",
    "Slow Consumer (Pending Bytes)": "slow_consumer",
    "Slow Consumer (Write Deadline)": "slow_consumer",
}
"""Reasons of the server that a person should hear of; a device that merely went is none."""

Lookup = Callable[[Address], DeviceRecord | None]


@dataclass(frozen=True, slots=True)
class Turned:
    """A connection that was refused, or ended by the server. `claimed`: nothing proves that it was this device."""

    reason: str
    device: str
    claimed: bool


def refused(client: dict[str, Any], account: str, find: Lookup, now: float) -> Turned:
    """Why the server let somebody in no further.

    Args:
        client: of the server's event.
        account: public key that signs credentials.
        find: record of a device.
        now: seconds since the epoch.
    """
    claims = verified_jwt(str(client.get("jwt", "")), account)
    if claims is None:
        return Turned("wrong_credential", _text(client.get("user")), claimed=True)
    name = _text(claims.get("name"))
    if claims.get("exp", now) < now:
        return Turned("expired", name, claimed=False)
    record = _record(name, find)
    void = record is not None and (record.standing != "enrolled" or claims.get("iat", 0) < record.jwt_issued)
    return Turned("revoked" if void else "not_allowed", name, claimed=False)


def ended(event: dict[str, Any]) -> Turned | None:
    """Why the server ended a connection; None if nobody need hear of it."""
    reason = ENDINGS.get(str(event.get("reason")))
    client = event.get("client", {})
    return None if reason is None else Turned(reason, _text(client.get("name_tag")), claimed=False)


class Door:
    """Listens to the server's events over the connection of the system account."""

    def __init__(self, system: Bus, account: str, find: Lookup, *, logged_per_s: int) -> None:
        self._system = system
        self._account = account
        self._find = find
        self._allowance = Allowance(logged_per_s)

    async def listen(self) -> None:
        """Subscribe; nats-py does so again after a reconnect."""
        await self._system.nc.subscribe(REFUSED_SUBJECT, cb=self._refused)
        await self._system.nc.subscribe(ENDED_SUBJECT, cb=self._ended)

    async def _refused(self, message: Msg) -> None:
        client = json.loads(message.data).get("client", {})
        self._tell("connection.refused", refused(client, self._account, self._find, time.time()))

    async def _ended(self, message: Msg) -> None:
        turned = ended(json.loads(message.data))
        if turned is not None:
            self._tell("connection.ended", turned)

    def _tell(self, event: str, turned: Turned) -> None:
        REJECTED.labels(SERVICE, "connection", turned.reason).inc()
        if self._allowance.take(time.monotonic()):
            log.warning(event, device=turned.device, reason=turned.reason, claimed=turned.claimed)


def _record(name: str, find: Lookup) -> DeviceRecord | None:
    try:
        return find(Address(*name.split("/", 1)))
    except (TopicError, TypeError):  # a service
        return None


def _text(value: object) -> str:
    return str(value or "-")[:128]
