"""The life of a service: connect, ensure what it owns, serve until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from nats.errors import Error as NatsError
from pydantic import BaseModel

from schemas.topics import event_subject
from services.kit import logs
from services.kit.bus import Bus, connect, wait_for
from services.kit.errors import PlatformError
from services.kit.folder import StateFolder, default_root
from services.kit.health import Health
from services.kit.keys import read_letter_key
from services.kit.mailbox import Mailbox
from services.kit.settings import Settings, load_settings
from services.kit.streams import ensure_owned

log = structlog.get_logger()

HEARD_WITHIN_S = 2.0
HEARD_AGAIN_S = 0.25

Wire = Callable[["Service"], Awaitable[None]]


class Service:
    """What a service's `app.py` wires its parts to.

    Attributes:
        name: as in topics, credentials and settings.
    """

    def __init__(self, name: str, state: StateFolder, settings: Settings, bus: Bus) -> None:
        self.name = name
        self.state = state
        self.settings = settings
        self.bus = bus
        self._tasks: list[asyncio.Task[Any]] = []
        self._waiting: set[str] = {"start"}
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self._ending = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run something for as long as the service lives; an error of it ends the service, to be restarted."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def every(self, interval_s: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Repeat something; a failure is logged and the next turn comes all the same."""

        async def loop() -> None:
            while True:
                await asyncio.sleep(interval_s)
                try:
                    await work()
                except Exception:  # periodic work sees every error again at its next turn
                    log.exception("periodic.failed", work=name)

        self.spawn(loop(), name)

    def on_close(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Have `callback` run at the end, last registered first."""
        self._closing.append(callback)

    def wait_on(self, what: str) -> None:
        """Report "not ready" until `reached(what)`."""
        self._waiting.add(what)

    def reached(self, what: str) -> None:
        """Take back a `wait_on`."""
        self._waiting.discard(what)

    def waiting_for(self) -> list[str]:
        """What keeps this service from being ready."""
        return sorted(self._waiting | (set() if self.bus.nc.is_connected else {"bus"}))

    def mailbox(self) -> Mailbox:
        """Letters to devices, signed with this service's key."""
        key = read_letter_key(self.state.service_key(self.name))
        return Mailbox(self.bus.js, self.name, self.settings.platform, key.signer, key.generation)

    async def announce(self, event: str, data: BaseModel) -> None:
        """Publish a fact to EVENTS; stored when this returns."""
        await self.bus.js.publish(event_subject(self.name, event), data.model_dump_json().encode())

    async def run(self, wire: Wire) -> None:
        """Wire the parts, serve until SIGTERM or SIGINT, close."""
        health = Health(self.waiting_for)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await health.start(self.settings.http.host, self.settings.http.health_ports.get(self.name, 0))
        try:
            self.spawn(self.bus.until_failed(), "connection")
            await self._ensure()
            self.bus.on_reconnect(self._ensure)
            await wire(self)
            await self.bus.broker.start()
            self.spawn(self._be_heard(), "start")
            log.info("service.started", health_port=health.port)
            stopping = asyncio.create_task(stop.wait())
            self._failed.add_done_callback(lambda _: stop.set())
            await stopping
            if self._failed.done():
                self._failed.result()
        finally:
            await self._close(health)

    async def _be_heard(self) -> None:
        # Until the server has taken the subscriptions, a request finds no responder. An answer says that it has.
        # Not by `flush`: after one that timed out, a late pong ends the connection's reader in silence.
        while True:
            try:
                await self.bus.nc.request("$JS.API.INFO", timeout=HEARD_WITHIN_S)
                break
            except (NatsError, TimeoutError) as error:
                log.warning("service.not_heard", error=repr(error))
                await asyncio.sleep(HEARD_AGAIN_S)
        self.reached("start")

    async def _ensure(self) -> None:
        # JetStream answers a little later than the server accepts connections.
        await wait_for(lambda: ensure_owned(self.bus.js, self.name), "JetStream")

    async def _close(self, health: Health) -> None:
        self._ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for callback in reversed(self._closing):
            await callback()
        await health.close()
        await self.bus.close()
        log.info("service.stopped")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if self._ending or self._failed.done():
            return
        # Only a library cancels what nobody here did; a loop that ended so is as dead as one that raised.
        error = PlatformError(f"run {task.get_name()}: it was cancelled") if task.cancelled() else task.exception()
        if error is not None:
            self._failed.set_exception(error)
        else:
            log.debug("task.ended", task=task.get_name())


def main(name: str, wire: Wire) -> None:
    """Entry point of `python -m services.NAME`: exit 0 when told to stop, 1 with a sentence on standard error."""
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}", description=f"Run the {name} alone.")
    parser.add_argument("--state", type=Path, default=default_root(), help="state folder (default: .causeway)")
    arguments = parser.parse_args()
    logs.configure(name)
    try:
        asyncio.run(_main(name, wire, StateFolder(arguments.state.absolute())))
    except PlatformError as error:
        log.error("service.failed", error=str(error))
        sys.stderr.write(f"{name}: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _main(name: str, wire: Wire, state: StateFolder) -> None:
    settings = load_settings(state)
    bus = await connect(state, settings, name)
    service = Service(name, state, settings, bus)
    with contextlib.suppress(asyncio.CancelledError):
        await service.run(wire)


def utc_now() -> datetime:
    """The shell's clock."""
    return datetime.now(UTC)
