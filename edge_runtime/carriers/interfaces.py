"""The networks that this device is in: IPv4, and of IPv6 the link-local and the unique local ones (RFC 4291, 4193).

Global IPv6 addresses are left alone: they would tell the LAN nothing but where this device is on the internet.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Network = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""An address of this device with its prefix; those of IPv6 bear the number of their link as scope (`%2`)."""
_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")


@dataclass(frozen=True, slots=True)
class Interfaces:
    """The networks that this device is in now."""

    networks: frozenset[Network]

    @classmethod
    def read(cls, only: str | None) -> Interfaces:
        """Ask the system; `only` names one interface, otherwise all but the loopback count."""
        import psutil  # noqa: PLC0415 - a module that only decides does not need it

        found: set[Network] = set()
        for name, addresses in psutil.net_if_addrs().items():
            for entry in addresses if name == (only or name) else ():
                network = _network(name, entry)
                if network is not None and (only or not network.is_loopback):
                    found.add(network)
        return cls(frozenset(found))

    @property
    def addresses(self) -> list[str]:
        """The device's own, in order, without scopes."""
        return [_plain(network) for network in self._ordered()]

    @property
    def speaking(self) -> list[str | int]:
        """Addresses to send multicast from: of IPv6 one of each link, the link-local one.

        VLANs share that of the link below them; where the address does not tell the link, its number stands instead.
        """
        links: dict[object, str] = {}
        for network in self._ordered():
            links[network.scope_id if isinstance(network, ipaddress.IPv6Interface) else network] = _plain(network)
        at = Counter(links.values())
        return [int(link) if isinstance(link, str) and at[address] > 1 else address for link, address in links.items()]

    def reach(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Whether an address is a neighbour's: in one of these networks, and not this device's own."""
        return any(
            _on_link(address, network) and address in network.network and int(address) != int(network.ip)
            for network in self.networks
        )

    def welcome(self, arrived_at: Sequence[Any]) -> bool:
        """Whether a call that arrived at this address of ours (`getsockname`) came over one of these networks."""
        address = ipaddress.ip_address(str(arrived_at[0]).partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        if isinstance(address, ipaddress.IPv6Address) and address.is_link_local:
            address = ipaddress.IPv6Address(f"{address}%{arrived_at[3]}")
        return any(_on_link(address, network) and int(address) == int(network.ip) for network in self.networks)

    def _ordered(self) -> list[Network]:
        # Link-local ones last: they need a scope to be of use.
        return sorted(self.networks, key=lambda network: (network.version, network.is_link_local, int(network.ip)))


def _on_link(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: Network) -> bool:
    """Addresses of different kinds, or of links that only share their prefix, have nothing to do with each other."""
    if isinstance(address, ipaddress.IPv4Address) or isinstance(network, ipaddress.IPv4Interface):
        return address.version == network.version
    return not address.is_link_local or address.scope_id == network.scope_id


def _network(name: str, entry: Any) -> Network | None:
    if entry.family is socket.AF_INET:
        return ipaddress.IPv4Interface(f"{entry.address}/{entry.netmask or '255.255.255.255'}")
    if entry.family is not socket.AF_INET6:
        return None
    address = ipaddress.IPv6Address(entry.address.partition("%")[0])
    if not (address.is_link_local or address in _UNIQUE_LOCAL or address.is_loopback):
        return None
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        # It has gone since it was listed.
        return None
    if not _usable(str(address), index):
        return None
    length = int(ipaddress.IPv6Address(entry.netmask)).bit_count() if entry.netmask else 128
    return ipaddress.IPv6Interface(f"{address}%{index}/{length}")


def _usable(address: str, index: int) -> bool:
    """A new address is of no use before the kernel has seen that nobody else has it (RFC 4862)."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0, 0, index))
        except OSError:
            return False
    return True


def _plain(network: Network) -> str:
    return str(network.ip).partition("%")[0]
