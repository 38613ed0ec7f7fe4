"""Meets devices of the same platform on the LAN: finds them, calls on them, is called on. Implements `port.Transport`.

Off unless the owner's settings say otherwise. What is handed over is not decided here; that is the exchange's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from edge_runtime.budget import Budget
from edge_runtime.carriers.certificates import Neighbour, NeighbourError, contexts, recognise
from edge_runtime.carriers.contacts import Contacts, Place
from edge_runtime.carriers.discovery import Discovery
from edge_runtime.carriers.interfaces import Interfaces
from edge_runtime.carriers.meeting import Talk, close, hold
from edge_runtime.carriers.reception import Reception, Streams, call, listen
from edge_runtime.errors import EdgeError
from edge_runtime.identity import Identity
from edge_runtime.logs import Log
from edge_runtime.settings import NeighbourSettings
from schemas.errors import ContractError
from schemas.ids import Address

log = Log(__name__)

NETWORK_S = 5.0
"""How often the device looks whether its addresses or its certificate have changed."""
MAX_CALLS = 2
"""Calls on others at once."""
TOLD_PER_MINUTE = 10
"""Refusals that are logged as warnings; all are counted."""


@dataclass(frozen=True, slots=True)
class Home:
    """What the transport asks of its device."""

    identity: Callable[[], Identity]
    now: Callable[[], datetime]
    """Floored."""
    talk: Callable[[Neighbour], Talk]
    """A new exchange with a proven peer."""


@dataclass(frozen=True, slots=True)
class _Meeting:
    dialler: Address
    task: asyncio.Task[Any]


class Neighbours:
    """One device on its LAN.

    Attributes:
        problem: why nobody can be met, for the status; None while all is well.
        refusals: peers and connections that were turned away or lost, by reason.
        meetings: that ended well.
        port: where the device listens; 0 before it does.
    """

    name = "neighbour"

    def __init__(
        self,
        settings: NeighbourSettings,
        home: Home,
        chance: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._home = home
        self._own = home.identity().address
        self._contacts = Contacts(settings.meet_s, chance or random.Random())  # noqa: S311 - it spreads calls
        self._interfaces = Interfaces(frozenset())
        self._certificate: str | None = None
        self._contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
        self._discovery: Discovery | None = None
        self._present: dict[Address, _Meeting] = {}
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._stir = asyncio.Event()
        self._listening = asyncio.Event()
        self._told = Budget(TOLD_PER_MINUTE)
        self.problem: str | None = None
        self.refusals: Counter[str] = Counter()
        self.meetings = 0
        self._last_met: dict[str, str] | None = None
        self.port = 0

    async def run(self) -> None:
        """Meet whoever can be met, until cancelled."""
        for peer in self._settings.peers:
            host, _, port = peer.rpartition(":")
            self._contacts.sight(peer, ((host.strip("[]"), int(port)),), None, time.monotonic(), fixed=True)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(group), name="neighbours listen")
                group.create_task(self._follow_network(), name="neighbours network")
                group.create_task(self._make_calls(group), name="neighbours call")
        finally:
            self.port = 0
            self._listening.clear()
            discovery, self._discovery = self._discovery, None
            self._contacts.forget_announced()
            if discovery is not None:
                await discovery.stop()

    def in_sight(self) -> Collection[Address]:
        """Peers that could be met now."""
        return self._contacts.in_sight(time.monotonic())

    def wake(self, but: Address | None = None) -> None:
        """There is something new to hand over; in the event loop. `but` has it already."""
        self._contacts.news(time.monotonic(), but)
        self._stir.set()

    def status(self) -> dict[str, Any]:
        """For `status.json`."""
        ignored = self._discovery.ignored if self._discovery is not None else {}
        return {
            "port": self.port,
            "announced": self._interfaces.addresses if self._discovery is not None else [],
            "in_sight": sorted(str(address) for address in self.in_sight()),
            "meetings": self.meetings,
            "last_met": self._last_met,
            "refusals": dict(self.refusals),
            "announcements_ignored": dict(ignored),
            "turned_away": self._contacts.turned_away,
        }

    async def _listen(self, group: asyncio.TaskGroup) -> None:
        reception = Reception(lambda: self._tls()[0], self._welcome, self._guest, self.refusals)
        while True:
            try:
                listener = listen(self._settings.port)
            except NeighbourError as error:
                self._trouble(error)
                await asyncio.sleep(NETWORK_S)
                continue
            with listener:
                self.port = listener.getsockname()[1]
                self._listening.set()
                await reception.run(listener, group)

    def _welcome(self, arrived_at: Sequence[Any]) -> bool:
        return self._interfaces.welcome(arrived_at)

    async def _follow_network(self) -> None:
        """Announce and look around anew when the device is in another network."""
        announced: Interfaces | None = None
        self._interfaces = await asyncio.to_thread(Interfaces.read, self._settings.interface)
        await self._listening.wait()
        while True:
            try:
                self._tls()
                if self._interfaces != announced:
                    announced = None
                    await self._announce()
                    announced = self._interfaces
                self.problem = None
            except NeighbourError as error:
                self._trouble(error)
            await asyncio.sleep(NETWORK_S)
            self._interfaces = await asyncio.to_thread(Interfaces.read, self._settings.interface)

    async def _announce(self) -> None:
        if self._discovery is not None:
            await self._discovery.stop()
            self._discovery = None
            self._contacts.forget_announced()
        if not any(not network.is_loopback for network in self._interfaces.networks):
            return
        discovery = Discovery(self._home.identity().platform, self._own, self._sighted, self._contacts.lose)
        try:
            await discovery.start(self._interfaces, self.port)
        except NeighbourError as error:
            if error.reason == "no_zeroconf" and self._settings.peers:
                log.warning("neighbours.not_announced", message=str(error))
                return
            raise
        self._discovery = discovery

    def _sighted(self, name: str, places: tuple[Place, ...], address: Address) -> None:
        if address == self._own:
            # A copy of this device; the certificate would be refused anyway.
            self.refusals["own_name"] += 1
            return
        self._contacts.sight(name, places, address, time.monotonic(), fixed=False)
        self._stir.set()

    async def _make_calls(self, group: asyncio.TaskGroup) -> None:
        while True:
            now = time.monotonic()
            for name in self._contacts.due(now)[: MAX_CALLS - len(self._calls)]:
                self._contacts.calling(name, now)
                task = group.create_task(self._call_on(name))
                self._calls[name] = task
                task.add_done_callback(partial(self._called, name))
            due = self._contacts.next_due()
            full = len(self._calls) >= MAX_CALLS
            await self._rest(None if due is None or full else max(0.0, due - time.monotonic()))

    def _called(self, name: str, _task: asyncio.Task[None]) -> None:
        self._calls.pop(name, None)
        self._stir.set()

    async def _call_on(self, name: str) -> None:
        contact = self._contacts.get(name)
        if contact is None or (contact.address is not None and contact.address in self._present):
            return
        try:
            streams = await self._reach(contact.places)
            try:
                await self._meet(streams, ours=name)
            finally:
                await close(streams.writer)
        except (EdgeError, ContractError) as error:
            if error.reason != "busy":
                self._contacts.failed(name, time.monotonic())
            self._refused(error, name)
        except Exception:  # noqa: BLE001 - see `_guest`
            self._contacts.failed(name, time.monotonic())
            self._unexpected(name)

    async def _reach(self, places: tuple[Place, ...]) -> Streams:
        context = self._tls()[1]
        for place in places[:-1]:
            with contextlib.suppress(NeighbourError):
                return await call(place, context)
        return await call(places[-1], context)

    async def _guest(self, streams: Streams) -> None:
        try:
            await self._meet(streams, ours=None)
        except (EdgeError, ContractError) as error:
            self._refused(error, "a guest")
        except Exception:  # noqa: BLE001 - one peer, whatever it sends, ends no meeting but its own
            self._unexpected("a guest")

    async def _meet(self, streams: Streams, ours: str | None) -> None:
        identity = self._home.identity()
        peer = recognise(streams.certificate, identity.platform, self._own, self._home.now())
        task = asyncio.current_task()
        assert task is not None
        meeting = _Meeting(self._own if ours else peer.address, task)
        self._settle(peer.address, meeting)
        try:
            await hold(self._home.talk(peer), streams.reader, streams.writer)
        finally:
            if self._present.get(peer.address) is meeting:
                del self._present[peer.address]
        self.meetings += 1
        self._last_met = {"peer": str(peer.address), "at": self._home.now().isoformat(timespec="seconds")}
        self._contacts.met(peer.address, time.monotonic(), ours)
        log.debug("neighbour.met", peer=str(peer.address), called=ours is not None)

    def _settle(self, address: Address, meeting: _Meeting) -> None:
        """One meeting per pair: if both called at once, the call of the lower name counts, on both sides alike.

        Raises:
            NeighbourError: `busy`.
        """
        present = self._present.get(address)
        if present is not None:
            again = meeting.dialler == present.dialler == address  # it has given the first one up
            if not again and meeting.dialler != min(self._own, address):
                raise NeighbourError(f"{address} is being met already", reason="busy")
            present.task.cancel()
        self._present[address] = meeting

    def _tls(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        identity = self._home.identity()
        if self._contexts is None or identity.certificate != self._certificate:
            self._contexts, self._certificate = contexts(identity), identity.certificate
        return self._contexts

    def _refused(self, error: EdgeError | ContractError, who: str) -> None:
        self.refusals[error.reason] += 1
        tell = log.warning if self._told.take(time.monotonic()) else log.debug
        tell("neighbour.refused", who=who, reason=error.reason, message=str(error))

    def _unexpected(self, who: str) -> None:
        self.refusals["unexpected"] += 1
        if self._told.take(time.monotonic()):
            log.exception("neighbour.unexpected", who=who)  # noqa: LOG004 - called inside one

    def _trouble(self, error: NeighbourError) -> None:
        if self.problem != str(error):
            log.warning("neighbours.trouble", reason=error.reason, message=str(error))
        self.problem = str(error)

    async def _rest(self, timeout_s: float | None) -> None:
        """Wait for news, or that long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._stir.wait()
        self._stir.clear()
