"""Nothing that a service lives on ends in silence: its connection, its loops, the list of devices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from schemas.ids import Address
from services.kit.bus import Bus, connect
from services.kit.devices import DeviceBook
from services.kit.errors import PlatformError, UnreachableError
from services.kit.service import Service
from services.kit.streams import ensure_owned
from tests.support.platform import LivePlatform
from tests.support.raw_device import RawDevice

LIMIT_S = 20


async def serve(live: LivePlatform, wire: Callable[[Service], Awaitable[None]]) -> None:
    bus = await connect(live.state, live.settings, "gateway")
    live.settings.http.health_ports["gateway"] = 0
    async with asyncio.timeout(LIMIT_S):
        await Service("gateway", live.state, live.settings, bus).run(wire)


async def test_a_connection_that_ended_for_good_ends_its_service(live: LivePlatform) -> None:
    async def wire(service: Service) -> None:
        # As nats-py does at an error of the server that it does not know.
        service.spawn(service.bus.nc._process_err("'Unknown Protocol Operation'"), "error")

    with pytest.raises(UnreachableError, match="ended for good"):
        await serve(live, wire)


async def test_a_loop_that_a_library_cancelled_ends_its_service(live: LivePlatform) -> None:
    async def loop() -> None:
        raise asyncio.CancelledError

    async def wire(service: Service) -> None:
        service.spawn(loop(), "letters")

    with pytest.raises(PlatformError, match="run letters: it was cancelled"):
        await serve(live, wire)


async def test_a_recovery_that_breaks_ends_its_service(live: LivePlatform) -> None:
    async def broken() -> None:
        raise ValueError("nobody foresaw this")

    async def wire(service: Service) -> None:
        service.bus.on_reconnect(broken)
        await service.bus.recovered()

    with pytest.raises(ValueError, match="nobody foresaw this"):
        await serve(live, wire)


async def write(bus: Bus, key: str, value: bytes) -> None:
    await (await bus.bucket("devices")).put(key, value)


async def test_one_unreadable_device_does_not_hide_the_others(live: LivePlatform) -> None:
    registry = await connect(live.state, live.settings, "registry")
    ota = await connect(live.state, live.settings, "ota")
    book = DeviceBook()
    one, two = Address("home", "cam-1"), Address("home", "cam-2")
    records = {name: RawDevice(live, name).record().model_dump_json().encode() for name in ("cam-1", "cam-2")}
    try:
        await ensure_owned(registry.js, "registry")
        await write(registry, "home.cam-1", records["cam-1"])
        await book.follow(ota)
        assert book.verifier(one) is not None

        await write(registry, "home.cam-1", b'{"fleet":"home"}')
        await write(registry, "home.cam-2", records["cam-2"])
        assert await book.wait_verifier(two, LIMIT_S) is not None
        # Its last word may have been that it is revoked.
        assert book.verifier(one) is None
    finally:
        book.close()
        await ota.close()
        await registry.close()


async def test_following_again_leaves_no_watch_behind(live: LivePlatform) -> None:
    registry = await connect(live.state, live.settings, "registry")
    ota = await connect(live.state, live.settings, "ota")
    book = DeviceBook()
    try:
        await ensure_owned(registry.js, "registry")
        await book.follow(ota)
        watches = len(ota.nc._subs)
        for _ in range(3):
            await ota._recover()
        assert len(ota.nc._subs) == watches
    finally:
        book.close()
        await ota.close()
        await registry.close()
