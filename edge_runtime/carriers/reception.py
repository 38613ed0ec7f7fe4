"""The door of a device on its LAN: takes connections, bounded before anything is spent on them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.budget import Budget
from edge_runtime.carriers.certificates import NeighbourError
from edge_runtime.carriers.meeting import close, explain
from edge_runtime.carriers.port import MAX_FRAME_BYTES
from edge_runtime.logs import Log

log = Log(__name__)

HANDSHAKE_S = 10.0
MAX_GUESTS = 8
"""Connections from others at once, proven or not; for the next one the oldest goes that has not proven itself."""
MAX_UNPROVEN_PER_HOST = 2
"""Connections from one address that have not proven themselves."""
CALLS_PER_MINUTE = 60
"""From one address."""
MAX_HOSTS = 256
"""Addresses whose calls are counted."""
ACCEPT_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Streams:
    """One TLS connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def certificate(self) -> bytes | None:
        """The peer's, in DER."""
        shown: bytes | None = self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown


Guest = Callable[[Streams], Awaitable[None]]


@dataclass
class _Caller:
    """A connection that was accepted."""

    host: str
    proven: bool = False


class Reception:
    """Listens on one port.

    Args:
        context: for the next handshake, since certificates are renewed.
        local: whether a call that arrived at this address of ours (`getsockname`) is welcome.
        guest: what to do with a connection; it is closed afterwards.
        refusals: counts who was turned away before that, by reason.
    """

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext],
        local: Callable[[Sequence[Any]], bool],
        guest: Guest,
        refusals: Counter[str],
    ) -> None:
        self._context = context
        self._local = local
        self._guest = guest
        self._refusals = refusals
        self._guests: dict[asyncio.Task[None], _Caller] = {}
        self._budgets: dict[str, Budget] = {}

    async def run(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        """Serve a listening socket until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, (host, *_) = await loop.sock_accept(listener)
            except OSError as error:
                # Out of file descriptors, above all.
                log.error("neighbours.not_accepted", error=repr(error))
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            refusal = self._refusal(connection, host)
            if refusal is not None:
                self._refusals[refusal] += 1
                connection.close()
                continue
            caller = _Caller(host)
            task = group.create_task(self._receive(connection, caller))
            self._guests[task] = caller
            task.add_done_callback(lambda task: self._guests.pop(task, None))
            # Accepting does not yield while somebody waits; a task that is given up before it began closes nothing.
            await asyncio.sleep(0)

    def _refusal(self, connection: socket.socket, host: str) -> str | None:
        if not self._local(connection.getsockname()):
            return "other_interface"
        unproven = [task for task, caller in self._guests.items() if not caller.proven]
        if sum(self._guests[task].host == host for task in unproven) >= MAX_UNPROVEN_PER_HOST:
            return "too_many_at_once"
        if len(self._guests) >= MAX_GUESTS and not unproven:
            return "crowded"
        budget = self._budgets.pop(host, None) or Budget(CALLS_PER_MINUTE)
        self._budgets[host] = budget
        if len(self._budgets) > MAX_HOSTS:
            del self._budgets[next(iter(self._budgets))]
        if not budget.take(time.monotonic()):
            return "too_often"
        if len(self._guests) >= MAX_GUESTS:
            # A handshake among neighbours takes a moment; the oldest that has not ended is the least likely to.
            self._give_up(unproven[0])
        return None

    def _give_up(self, task: asyncio.Task[None]) -> None:
        self._refusals["given_up"] += 1
        del self._guests[task]
        task.cancel()

    async def _receive(self, connection: socket.socket, caller: _Caller) -> None:
        try:
            streams = await self._shake_hands(connection)
        except asyncio.CancelledError:
            connection.close()
            raise
        except (NeighbourError, OSError) as error:
            told = error if isinstance(error, NeighbourError) else explain(error, "be called on", "lost")
            self._refusals[told.reason] += 1
            log.debug("neighbour.refused", reason=told.reason, message=str(told))
            connection.close()
            return
        caller.proven = True
        try:
            await self._guest(streams)
        finally:
            await close(streams.writer)

    async def _shake_hands(self, connection: socket.socket) -> Streams:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_FRAME_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=self._context(), ssl_handshake_timeout=HANDSHAKE_S
        )
        return Streams(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


def listen(port: int) -> socket.socket:
    """A listening socket on all interfaces, for IPv6 and IPv4 where the system has both.

    Raises:
        NeighbourError: `port_taken`.
    """
    both = socket.has_dualstack_ipv6()
    listener = socket.socket(socket.AF_INET6 if both else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if both:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Strangers on the LAN may call; `Reception` looks at who and where before it answers.
        listener.bind(("", port))
        listener.listen(MAX_GUESTS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise NeighbourError(
            f"listen for neighbours on port {port}: {error.strerror}; set another `port` in [neighbours]",
            reason="port_taken",
        ) from error
    return listener


async def call(place: tuple[str, int], context: ssl.SSLContext) -> Streams:
    """Dial a peer.

    Raises:
        NeighbourError: `unreachable`, `timeout`, `unknown_ca`, `refused_there` or `no_tls`.
    """
    doing = f"call on {place[0]}:{place[1]}"
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            reader, writer = await asyncio.open_connection(*place, ssl=context, limit=MAX_FRAME_BYTES)
    except OSError as error:
        raise explain(error, doing, "unreachable") from error
    return Streams(reader, writer)
