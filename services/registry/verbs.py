"""The registry's verbs: parse, ask the core, apply."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from ulid import ULID

from schemas.ids import Address
from schemas.registry import Token
from services.kit import rpc
from services.kit.api.depot import TrustAnswer
from services.kit.api.registry import DeviceRequest, ListRequest, TokenRequest
from services.kit.bus import Bus
from services.kit.errors import NotFoundError
from services.registry.claims import Claims
from services.registry.enrolment import revoke
from services.registry.facts import Facts
from services.registry.losses import LossBook
from services.registry.metrics import REVOKED
from services.registry.minting import BACKDATE_S, Mint
from services.registry.settings import RegistrySettings
from services.registry.store import Devices, Stored, Tokens
from services.registry.table import Table
from services.registry.tokens import SECRET_BYTES, Admission, Place, make_token
from services.registry.views import page, view

log = structlog.get_logger()

Now = Callable[[], datetime]
Trust = Callable[[], Awaitable[TrustAnswer]]


class Verbs:
    """token, list, show, revoke."""

    def __init__(
        self,
        *,
        devices: Devices,
        tokens: Tokens,
        table: Table,
        mint: Mint,
        trust: Trust,
        facts: Facts,
        claims: Claims,
        losses: LossBook,
        settings: RegistrySettings,
        url: str,
        ca_pem: str | None,
        platform: str,
        now: Now,
    ) -> None:
        self._devices = devices
        self._tokens = tokens
        self._table = table
        self._mint = mint
        self._trust = trust
        self._facts = facts
        self._claims = claims
        self._losses = losses
        self._settings = settings
        self._url = url
        self._ca_pem = ca_pem
        self._platform = platform
        self._now = now

    def serve(self, bus: Bus) -> None:
        """Answer, once the service starts."""
        rpc.serve(bus, "registry", "token", TokenRequest, self.token)
        rpc.serve(bus, "registry", "list", ListRequest, self.list_all)
        rpc.serve(bus, "registry", "show", DeviceRequest, self.show)
        rpc.serve(bus, "registry", "revoke", DeviceRequest, self.revoke)

    async def token(self, request: TokenRequest) -> dict[str, Any]:
        """Make an enrolment token."""
        address = Address(request.fleet, request.device)
        trust = await self._trust()
        now = self._now().timestamp()
        expires = int(now + request.ttl_s)
        admission = Admission(
            token=str(ULID.from_timestamp(now)),
            secret=secrets.token_bytes(SECRET_BYTES),
            jwt=self._mint.bootstrap_jwt(address, int(now) - BACKDATE_S, expires),
            client_id=self._mint.bootstrap_client_id(),
        )
        place = Place(self._url, self._ca_pem, self._platform, trust.root_sha256)
        token, record = make_token(place, address, admission, now, expires)
        await self._tokens.add(record)
        log.info("token.made", device=str(address), token=record.token, expires=token.expires.isoformat())
        return _json(token)

    async def list_all(self, request: ListRequest) -> list[dict[str, Any]]:
        """Devices of a fleet or of all, as many as fit."""
        wanted = [a for a in self._devices.addresses() if request.fleet in {None, a.fleet}]
        show = partial(self.view, heartbeat=True)
        return page(wanted, show, request.after, self._settings.list_bytes)

    async def show(self, request: DeviceRequest) -> dict[str, Any]:
        """One device."""
        stored = self._find(request)
        view = self.view(stored.record.address, heartbeat=True)
        totals = await self._losses.totals(stored.record.address)
        return view | {"losses": None if totals is None else totals.model_dump(mode="json", exclude_none=True)}

    async def revoke(self, request: DeviceRequest) -> dict[str, Any]:
        """Cut one device off, now and for good; the others do not notice."""
        stored = self._find(request)
        record = stored.record
        if record.standing != "revoked":
            self._claims.check_room()
            if record.owed is not None:
                # A thief is not let on until EVENTS answers; who hears of the revocation needs to know no more.
                log.warning("fact.overridden", device=str(record.address), fact=record.owed)
            record = revoke(record, self._now().timestamp())
            await self._devices.write(record, stored.revision)
            REVOKED.inc()
            log.warning("device.revoked", device=str(record.address))
        # Also for one that is revoked already: the bus may not have heard of it. Only then is it told to others.
        await self._claims.settle()
        await self._facts.tell(record.address)
        return self.view(record.address)

    def view(self, address: Address, *, heartbeat: bool = False) -> dict[str, Any]:
        """What is told of one device that is known."""
        stored = self._devices.get(address)
        assert stored is not None, "records are never deleted"
        return view(stored.record, self._table.sight(address), heartbeat=heartbeat)

    def _find(self, request: DeviceRequest) -> Stored:
        address = Address(request.fleet, request.device)
        stored = self._devices.get(address)
        if stored is None:
            raise NotFoundError(f"find device {address}: nothing of that name is enrolled; see `causeway device list`")
        return stored


def _json(token: Token) -> dict[str, Any]:
    return token.model_dump(mode="json", exclude_none=True)
