"""Who is the active courier: a key in bucket `leader` that goes by itself when it is not refreshed.

The lease only says who should work; that a former holder cannot write is the chain's doing.
"""

from __future__ import annotations

import asyncio

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import KeyWrongLastSequenceError
from nats.js.kv import KeyValue
from ulid import ULID

from services.kit.bus import Bus
from services.kit.errors import PlatformError

log = structlog.get_logger()

KEY = "courier"
TIMEOUT_S = 1.0


class LeaseLostError(PlatformError):
    """Another courier is active; end and come back as its standby."""

    code = "lease_lost"


class Lease:
    """One instance's claim. `standby` is set once it is known that another holds the lease."""

    def __init__(self, bus: Bus, refresh_s: float) -> None:
        self._bus = bus
        self._refresh_s = refresh_s
        self._me = str(ULID()).encode()
        self._revision = 0
        self._lock = asyncio.Lock()
        self.standby = asyncio.Event()

    async def acquire(self) -> None:
        """Wait until the lease is ours; a watcher would not see it expire, so it is asked for again and again."""
        while True:
            try:
                self._revision = await (await self._bucket()).create(KEY, self._me)
                return
            except KeyWrongLastSequenceError:
                self.standby.set()
            except (NatsError, TimeoutError) as error:
                log.warning("lease.not_asked", error=repr(error))
            await asyncio.sleep(self._refresh_s / 2)

    async def keep(self) -> None:
        """Refresh until it is lost.

        Raises:
            LeaseLostError: another took it.
        """
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self.confirm()
            except (NatsError, TimeoutError) as error:
                log.warning("lease.not_refreshed", error=repr(error))

    async def confirm(self) -> None:
        """Refresh now.

        Raises:
            LeaseLostError: another took it.
            nats.errors.Error: if the bus does not answer; whether the lease holds is not known.
        """
        async with self._lock:
            bucket = await self._bucket()
            try:
                self._revision = await bucket.update(KEY, self._me, last=self._revision)
            except KeyWrongLastSequenceError:
                await self._reclaim(bucket)

    async def release(self) -> None:
        """Let a standby take over at once."""
        async with self._lock:
            await (await self._bucket()).delete(KEY, last=self._revision)

    async def _reclaim(self, bucket: KeyValue) -> None:
        # It expired while the server was away, or an update was stored whose answer was lost.
        try:
            self._revision = await bucket.create(KEY, self._me)
        except KeyWrongLastSequenceError:
            entry = await bucket.get(KEY)
            if entry.value != self._me:
                raise LeaseLostError(
                    "keep the lease of the active courier: another courier holds it; "
                    "this one ends, to be started again as its standby"
                ) from None
            self._revision = entry.revision or 0

    async def _bucket(self) -> KeyValue:
        return await self._bus.nc.jetstream(timeout=TIMEOUT_S).key_value("leader")
