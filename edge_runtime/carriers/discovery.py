"""Devices of one platform find each other on a LAN: DNS-SD over multicast DNS (RFC 6762, 6763).

zeroconf is imported only here, and only by a device that wants neighbours. What comes in is a stranger's word: it is
parsed, bounded and believed only as far as "somebody may listen there"; the meeting itself proves who it is.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edge_runtime.carriers.certificates import NeighbourError
from edge_runtime.carriers.contacts import Place
from edge_runtime.carriers.interfaces import Interfaces
from edge_runtime.logs import Log
from schemas.errors import MessageError
from schemas.ids import Address
from schemas.neighbours import SERVICE_TYPE, Announcement, instance_name, platform_hash

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

log = Log(__name__)

MAX_LOOKUPS = 16
"""Announcements that are being asked about at once; more are left until they announce themselves again."""
LOOKUP_MS = 3_000
MAX_PLACES = 4
"""Addresses of one peer that are tried."""

Sighted = Callable[[str, tuple[Place, ...], Address], None]
Lost = Callable[[str], None]


def places_of(addresses: Sequence[str], port: int | None, interfaces: Interfaces) -> tuple[Place, ...]:
    """Where an announcement says that a peer listens: in our own networks, so that nobody can send us elsewhere.

    Args:
        addresses: link-local ones with the number of the link that they were heard on.
        port: as announced.
        interfaces: our own.

    Raises:
        MessageError: `no_place` if nothing is left.
    """
    given = {ipaddress.ip_address(text) for text in addresses[: 4 * MAX_PLACES]}
    near = sorted(
        (address for address in given if interfaces.reach(address)),
        key=lambda address: (address.version, address.is_link_local, int(address)),
    )
    if not near or not port or not 0 < port < 65_536:
        raise MessageError("the announcement names no place in our networks", reason="no_place")
    return tuple((str(address), port) for address in near[:MAX_PLACES])


class Discovery:
    """Announces this device and follows the announcements of others.

    Args:
        platform: only peers of this one are told of.
        own: this device.
        sighted: called with the instance's name, its places and the device that it claims to be.
        lost: called with the name of an instance that is gone.
    """

    def __init__(self, platform: str, own: Address, sighted: Sighted, lost: Lost) -> None:
        self._announcement = Announcement(platform_hash(platform), own)
        self._sighted = sighted
        self._lost = lost
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._interfaces = Interfaces(frozenset())
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self.ignored: Counter[str] = Counter()
        """Announcements that were not taken, by reason."""

    async def start(self, interfaces: Interfaces, port: int) -> None:
        """Begin on these interfaces; `port` is where this device listens.

        Raises:
            NeighbourError: `no_zeroconf` if the package is not installed, `no_multicast` if the network refuses.
        """
        try:
            from zeroconf import Error as ZeroconfError  # noqa: PLC0415
            from zeroconf.asyncio import (  # noqa: PLC0415 - 5 MB that most devices do not need
                AsyncServiceBrowser,
                AsyncServiceInfo,
                AsyncZeroconf,
            )
        except ImportError as error:
            raise NeighbourError(
                "find neighbours: the package zeroconf is not installed; install causeway[neighbours], or name "
                "neighbours in `peers` of the settings",
                reason="no_zeroconf",
            ) from error
        self._interfaces = interfaces
        name = instance_name(self._announcement)
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            name,
            addresses=[ipaddress.ip_address(address).packed for address in interfaces.addresses],
            port=port,
            properties=self._announcement.properties(),
            server=name.replace(SERVICE_TYPE, "local."),
        )
        try:
            # Which versions of IP it speaks follows from the addresses.
            self._zeroconf = AsyncZeroconf(interfaces=interfaces.speaking)
            self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._changed])
            # A copy of this device's disk may be on the same LAN; the meeting tells them apart, not the name.
            await (await self._zeroconf.async_register_service(info, allow_name_change=True))
        except (OSError, RuntimeError, ZeroconfError) as error:  # RuntimeError: an address that has gone since
            await self.stop()
            raise NeighbourError(f"announce this device on the LAN: {error!r}", reason="no_multicast") from error
        except BaseException:
            # Cancelled, or what nobody expected: it is begun anew with other sockets.
            await self.stop()
            raise
        log.info("neighbours.announced", name=name, addresses=interfaces.addresses, port=port)

    async def stop(self) -> None:
        """Say goodbye and end."""
        for lookup in self._lookups.values():
            lookup.cancel()
        await asyncio.gather(*self._lookups.values(), return_exceptions=True)
        self._lookups.clear()
        browser, self._browser = self._browser, None
        zeroconf, self._zeroconf = self._zeroconf, None
        if browser is not None:
            await browser.async_cancel()
        if zeroconf is not None:
            await zeroconf.async_close()

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change.name == "Removed":
            self._lost(name)
            return
        if name in self._lookups:
            return
        if len(self._lookups) >= MAX_LOOKUPS:
            self.ignored["too_many"] += 1
            return
        task = asyncio.get_running_loop().create_task(self._look_up(zeroconf, service_type, name))
        self._lookups[name] = task
        task.add_done_callback(lambda _: self._lookups.pop(name, None))

    async def _look_up(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415

        info = AsyncServiceInfo(service_type, name)
        try:
            self._take(name, info, answered=await info.async_request(zeroconf, LOOKUP_MS))
        except MessageError as error:
            self.ignored[error.reason] += 1
            log.debug("neighbour.ignored", name=name[:100], reason=error.reason, message=str(error))

    def _take(self, name: str, info: Any, *, answered: bool) -> None:
        if not answered:
            raise MessageError(f"{name[:100]} does not answer", reason="no_answer")
        announcement = Announcement.parse(info.properties)
        if announcement == self._announcement:
            return
        if announcement.platform_hash != self._announcement.platform_hash:
            raise MessageError(f"{name[:100]} is of another platform", reason="other_platform")
        places = places_of(info.parsed_scoped_addresses(), info.port, self._interfaces)
        self._sighted(name, places, announcement.address)
