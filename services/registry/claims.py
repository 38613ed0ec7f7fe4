"""Revocation on the bus: the account's JWT, signed anew with who is void, handed to nats-server.

Only the device that is named is cut, within milliseconds; a reload of the configuration would drop every device.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

import structlog
from nats.errors import Error as NatsError

from services.kit.bus import Bus
from services.kit.credentials import AccountClaims, NKey, account_jwt
from services.kit.errors import RefusedError, SettingsError, UnreachableError
from services.kit.folder import StateFolder

log = structlog.get_logger()

ACCOUNT = "causeway"
UPDATE_SUBJECT = "$SYS.REQ.CLAIMS.UPDATE"
UPDATE_TIMEOUT_S = 5.0


class Claims:
    """Pushes what `wanted` names; `wanted` gives the bus users and the time up to which their JWTs are void."""

    def __init__(
        self,
        state: StateFolder,
        system: Bus,
        wanted: Callable[[], Mapping[str, int]],
        now: Callable[[], float],
        limit: int,
    ) -> None:
        self._state = state
        self._system = system
        self._wanted = wanted
        self._now = now
        self._limit = limit
        self._pushed: dict[str, int] = {}
        self._issued = 0
        self._turn = asyncio.Lock()

    def check_room(self) -> None:
        """Refuse before a record says "revoked" that the bus would not hear of.

        Raises:
            RefusedError: if the account's JWT is full, or the operator's key is not on this host.
        """
        if len(self._wanted()) >= self._limit:
            raise RefusedError(
                f"revoke a device: {self._limit} revocations are live, more do not fit into the account's JWT; "
                "they end with the devices' credentials"
            )
        self._operator()

    async def settle(self) -> None:
        """Bring the bus up to date if it is not.

        Raises:
            RefusedError: if the operator's key is not on this host.
            UnreachableError: if nats-server does not take the JWT; repeat.
        """
        async with self._turn:
            wanted = dict(self._wanted())
            # What has merely ended need not be taken out at once.
            if wanted.items() <= self._pushed.items():
                return
            await self._push(wanted)
            self._pushed = wanted

    async def _push(self, wanted: dict[str, int]) -> None:
        operator = self._operator()
        account = NKey.load(self._state.bus_keys / "account.nk").public
        # The newest wins in the server's store, even where two fall into one second.
        self._issued = max(int(self._now()), self._issued + 1)
        jwt = account_jwt(operator, AccountClaims(ACCOUNT, account, self._issued, jetstream=True, revocations=wanted))
        try:
            reply = await self._system.nc.request(UPDATE_SUBJECT, jwt.encode(), timeout=UPDATE_TIMEOUT_S)
        except (NatsError, TimeoutError) as error:
            raise UnreachableError(
                f"hand {len(wanted)} revocations to nats-server: {error!r}; the registry tries again by itself"
            ) from error
        answer = json.loads(reply.data)
        if "error" in answer:
            raise UnreachableError(f"hand {len(wanted)} revocations to nats-server: it says {answer['error']}")
        log.info("revocations.pushed", live=len(wanted))

    def _operator(self) -> NKey:
        path = self._state.bus_keys / "operator.nk"
        try:
            return NKey.load(path)
        except SettingsError as error:
            raise RefusedError(
                f"revoke a device: the operator's key {path.name} is not on this host; bring it back for this, "
                "or wait until the device's credentials end"
            ) from error
