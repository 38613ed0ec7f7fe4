"""Wires the courier."""

from __future__ import annotations

import asyncio

import structlog
from nats.errors import Error as NatsError

from services.courier import metrics
from services.courier.handlers import StateHandlers
from services.courier.intake import Intake, Turnstile
from services.courier.lease import Lease
from services.courier.pipeline import Pipeline
from services.courier.postman import Postman
from services.courier.receipts import Receipts
from services.courier.sessions import Sessions
from services.courier.settings import CourierSettings
from services.kit.devices import DeviceBook
from services.kit.errors import UnreachableError
from services.kit.keys import read_letter_key
from services.kit.service import Service

log = structlog.get_logger()


async def wire(service: Service) -> None:
    """Connect the parts; letters are taken by the one courier that holds the lease, a standby waits and is healthy."""
    bus, settings, platform = service.bus, CourierSettings(), service.settings.platform
    pipeline = Pipeline(bus.nc, settings.publish_timeout_s)
    await pipeline.open()
    lease = Lease(bus, settings.lease_refresh_s)
    sessions = Sessions(settings.max_sessions)
    turnstile = Turnstile(bus, settings.rejects_per_minute)
    book = DeviceBook()
    receipts = Receipts(bus, read_letter_key(service.state.service_key("courier")), platform, sessions, settings)
    postman = Postman(bus, pipeline, settings)
    intake = Intake(
        bus,
        pipeline,
        lease,
        book=book,
        platform=platform,
        receipts=receipts,
        sessions=sessions,
        turnstile=turnstile,
        settings=settings,
    )
    handlers = StateHandlers(intake, postman, receipts, sessions, turnstile)
    await handlers.subscribe(bus)

    async def reconnected() -> None:
        intake.interrupt("the connection was lost")
        postman.interrupt("the connection was lost")

    async def serve() -> None:
        await _follow_devices(book, service)
        await lease.acquire()
        log.info("courier.active")
        metrics.ACTIVE.set(1)
        handlers.active = True
        service.spawn(lease.keep(), "lease")
        service.spawn(receipts.run(), "receipts")
        service.spawn(postman.read(), "mailboxes")
        service.spawn(postman.send(), "send")
        service.spawn(postman.delete(), "delete")
        service.every(1.0, postman.expire, "expire")
        service.on_close(retire)
        await intake.run()

    async def retire() -> None:
        if bus.nc.is_connected:
            await intake.save()
            try:
                await lease.release()
            except (NatsError, TimeoutError) as error:
                log.warning("lease.not_released", error=repr(error))

    async def closed() -> None:
        book.close()

    async def ready() -> None:
        standby = asyncio.create_task(lease.standby.wait())
        loaded = asyncio.gather(intake.serving.wait(), postman.loaded.wait())
        await asyncio.wait({standby, loaded}, return_when=asyncio.FIRST_COMPLETED)
        service.reached("letters")

    bus.on_reconnect(reconnected)
    service.on_close(closed)
    service.wait_on("letters")
    service.spawn(ready(), "ready")
    service.spawn(serve(), "courier")


async def _follow_devices(book: DeviceBook, service: Service) -> None:
    # The registry makes the bucket; without it every sender would be a stranger.
    service.wait_on("devices")
    while True:
        try:
            await book.follow(service.bus)
            service.reached("devices")
            return
        except UnreachableError as error:
            log.warning("devices.not_there", error=str(error))
