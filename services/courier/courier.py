"""The courier's life: learn who may speak, wait for the lease, serve until it is lost."""

from __future__ import annotations

import asyncio

import structlog
from nats.errors import Error as NatsError

from services.courier import metrics
from services.courier.bundles.wiring import Bundles
from services.courier.down.postman import Postman
from services.courier.handlers import StateHandlers
from services.courier.integrity.wiring import Integrity
from services.courier.lease import Lease
from services.courier.receipts.receipts import Receipts
from services.courier.up.intake import Intake
from services.kit.devices import DeviceBook
from services.kit.errors import UnreachableError
from services.kit.pipeline import PipelineError
from services.kit.service import Service

log = structlog.get_logger()

EXPIRE_S = 1.0


class Courier:
    """One instance, first as a standby, which is healthy too, then as the active one."""

    def __init__(
        self,
        service: Service,
        *,
        lease: Lease,
        book: DeviceBook,
        intake: Intake,
        postman: Postman,
        receipts: Receipts,
        handlers: StateHandlers,
        bundles: Bundles,
        integrity: Integrity,
    ) -> None:
        self._service = service
        self._lease = lease
        self._book = book
        self._intake = intake
        self._postman = postman
        self._receipts = receipts
        self._handlers = handlers
        self._bundles = bundles
        self._integrity = integrity

    def start(self) -> None:
        """Begin; not ready before this instance is known to be a standby, or takes letters."""
        service = self._service
        service.bus.on_disconnect(self._intake.doubt)
        service.bus.on_reconnect(self._reconnected)
        service.on_close(self._close)
        service.wait_on("devices")
        service.wait_on("letters")
        service.spawn(self._ready_after(self._lease.standby), "standby")
        service.spawn(self._ready_after(self._intake.serving, self._postman.loaded, self._bundles.serving), "active")
        service.spawn(self._run(), "courier")

    async def _run(self) -> None:
        await self._follow_devices()
        await self._lease.acquire()
        log.info("courier.active")
        metrics.ACTIVE.set(1)
        self._handlers.active = True
        service, postman = self._service, self._postman
        service.on_close(self._retire)
        service.spawn(self._lease.keep(), "lease")
        service.spawn(self._receipts.run(), "receipts")
        service.spawn(postman.read(), "mailboxes")
        service.spawn(postman.send(), "send")
        service.spawn(postman.delete(), "delete")
        service.every(EXPIRE_S, postman.expire, "expire")
        self._bundles.start(service, self._intake.serving, postman.loaded)
        self._integrity.start(service)
        await self._intake.run()

    async def _follow_devices(self) -> None:
        # The registry makes the bucket; without it every sender would be a stranger.
        while True:
            try:
                await self._book.follow(self._service.bus)
                self._service.reached("devices")
                return
            except UnreachableError as error:
                log.warning("devices.not_there", error=str(error))

    async def _ready_after(self, *signs: asyncio.Event) -> None:
        for sign in signs:
            await sign.wait()
        self._service.reached("letters")

    async def _reconnected(self) -> None:
        # A restarted server forgot the requests that it held.
        self._intake.interrupt("the connection was lost")
        self._postman.interrupt("the connection was lost")
        self._bundles.interrupt("the connection was lost")

    async def _retire(self) -> None:
        if not self._service.bus.nc.is_connected:
            return
        try:
            await self._intake.save()
            await self._lease.release()
        except (NatsError, TimeoutError, PipelineError) as error:
            log.warning("courier.not_retired", error=repr(error))

    async def _close(self) -> None:
        self._book.close()
