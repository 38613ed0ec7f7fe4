"""A service's connection to the bus. FastStream carries requests, nats-py the streams, over one connection.

Streams are read with nats-py alone: FastStream's pull loop ends at an API error that it does not know, and a service
that stops reading in silence is the one thing that must not happen (decision 0002).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog
from faststream.nats import NatsBroker
from faststream.nats.security import NatsCredentials, NatsSecurity
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from nats.js.kv import KeyValue

from services.kit.errors import UnreachableError
from services.kit.folder import StateFolder
from services.kit.settings import Settings

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5
RECONNECT_WAIT_S = 0.25
PING_INTERVAL_S = 10
PUBLISH_TIMEOUT_S = 5.0
FLUSH_TIMEOUT_S = 2

T = TypeVar("T")
Callback = Callable[[], Awaitable[None]]


class Bus:
    """One named connection. `on_reconnect` callbacks run in order after every reconnect; a failing one is retried."""

    def __init__(self, broker: NatsBroker, user: str) -> None:
        self.broker = broker
        self.user = user
        self.closing = False
        self._on_reconnect: list[Callback] = []
        self._on_disconnect: list[Callable[[], None]] = []
        self._recovering: asyncio.Task[None] | None = None
        self._failed = asyncio.Event()
        self._failure: Exception | None = None

    @property
    def nc(self) -> Client:
        """The bare connection."""
        return self.broker.connection

    @property
    def js(self) -> JetStreamContext:
        """JetStream over it."""
        return self.nc.jetstream(timeout=PUBLISH_TIMEOUT_S)

    def on_reconnect(self, callback: Callback) -> None:
        """Have `callback` run after each reconnect, to make again what a restarted server forgot."""
        self._on_reconnect.append(callback)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Have `callback` run whenever the connection is lost: what is known of the server may not hold any more."""
        self._on_disconnect.append(callback)

    def disconnected(self) -> None:
        """Callback of the connection."""
        log.warning("bus.disconnected", user=self.user)
        for callback in self._on_disconnect:
            callback()

    def fail(self, error: Exception) -> None:
        """Something that lives on this connection ended for good; the first error counts."""
        if not self.closing and self._failure is None:
            self._failure = error
            self._failed.set()

    async def until_failed(self) -> None:
        """Wait for the end of the connection, or of something that lives on it.

        Raises:
            Exception: what ended; nothing repairs it but to start the service anew.
        """
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def bucket(self, name: str) -> KeyValue:
        """A bucket, waiting for its owner to make it.

        Raises:
            UnreachableError: if it is not there within 30 s.
        """
        return await wait_for(lambda: self.js.key_value(name), f"bucket {name}")

    async def close(self) -> None:
        """Finish the requests in hand, flush and disconnect.

        Not by draining, which waits for ever for a pull or a watch whose messages nobody takes any more.
        """
        self.closing = True
        if self._recovering is not None:
            self._recovering.cancel()
        for subscriber in self.broker.subscribers:
            await subscriber.stop()
        if self.nc.is_connected:
            try:
                await self.nc.flush(FLUSH_TIMEOUT_S)
            except NatsTimeoutError:
                log.warning("bus.unflushed", user=self.user)
        await self.nc.close()

    async def recovered(self) -> None:
        """Callback of the connection; runs the others in a task, since the connection waits for this one."""
        log.info("bus.reconnected", user=self.user)
        if self._recovering is not None:
            self._recovering.cancel()
        self._recovering = asyncio.create_task(self._recover())
        self._recovering.add_done_callback(self._recovery_ended)

    def _recovery_ended(self, task: asyncio.Task[None]) -> None:
        # A service that is recovered in part only would fail in silence.
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.fail(error)

    async def _recover(self) -> None:
        for callback in self._on_reconnect:
            while True:
                try:
                    await callback()
                    break
                except (NatsError, TimeoutError, UnreachableError) as error:
                    log.warning("bus.recovery_retried", user=self.user, error=repr(error))
                    await asyncio.sleep(RECONNECT_WAIT_S)


async def connect(state: StateFolder, settings: Settings, user: str) -> Bus:
    """Connect with the credentials of `user` and start FastStream's subscribers later, with `bus.broker.start()`.

    Raises:
        UnreachableError: if the server does not answer or refuses the credentials.
    """
    bus: Bus
    problems: list[str] = []

    async def reconnected() -> None:
        await bus.recovered()

    async def disconnected() -> None:
        if not bus.closing:
            bus.disconnected()

    async def closed() -> None:
        # nats-py gives up for good at some errors that the server sends, however many reconnects are allowed.
        why = f": {problems[0]}" if problems else ""
        bus.fail(UnreachableError(f"stay connected to the bus as {user}: the connection was ended for good{why}"))

    async def failed(error: Exception) -> None:
        problems[:] = [str(error) or repr(error)]
        log.warning("bus.error", user=user, error=repr(error))

    broker = NatsBroker(
        settings.bus.nats_url,
        security=_security(state, settings, user),
        name=f"causeway-{user}",
        inbox_prefix=f"_INBOX_{user}",
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]
        connect_timeout=CONNECT_TIMEOUT_S,
        ping_interval=PING_INTERVAL_S,
        pending_size=32 << 20,
        reconnected_cb=reconnected,
        disconnected_cb=disconnected,
        closed_cb=closed,
        error_cb=failed,
        logger=None,
    )
    bus = Bus(broker, user)
    creds = state.creds(user)
    if not creds.is_file():
        raise UnreachableError(f"connect {user} to the bus: {creds} is missing; `causeway init` writes it")
    try:
        # With endless reconnects nats-py would also retry the first connection for ever.
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await broker.connect()
    except (OSError, NatsError, TimeoutError) as error:
        raise UnreachableError(
            f"connect {user} to the bus at {settings.bus.nats_url}: {(problems or [repr(error)])[0]}; "
            "is the platform up? start it with `causeway up`"
        ) from error
    return bus


@asynccontextmanager
async def on_bus(state: StateFolder, settings: Settings, user: str) -> AsyncIterator[Bus]:
    """A connection with the credentials of `user` that is closed when the block ends; raises as `connect` does."""
    bus = await connect(state, settings, user)
    try:
        yield bus
    finally:
        await bus.close()


async def wait_for(probe: Callable[[], Awaitable[T]], what: str, timeout_s: float = 30.0) -> T:
    """Repeat `probe` until JetStream no longer says "not found".

    Raises:
        UnreachableError: after `timeout_s`.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            return await probe()
        except (NotFoundError, NatsTimeoutError, NoRespondersError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise UnreachableError(
                    f"wait for {what}: not there after {timeout_s:.0f} s ({error!r}); does its owner run?"
                ) from error
            await asyncio.sleep(RECONNECT_WAIT_S)


def tls_context(state: StateFolder) -> ssl.SSLContext:
    """Trust the platform's own authority and no other."""
    return ssl.create_default_context(cafile=str(state.ca / "ca.pem"))


def _security(state: StateFolder, settings: Settings, user: str) -> NatsSecurity:
    context = tls_context(state) if settings.bus.tls else None
    return NatsCredentials(str(state.creds(user)), ssl_context=context)
