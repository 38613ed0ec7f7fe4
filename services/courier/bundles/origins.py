"""What the courier remembers of devices whose letters come in bundles: bounded, and learnt anew with the next one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from schemas.courier import Hello
from schemas.ids import Address
from services.courier.bundles.fragments import MAX_CARRIERS

MAX_STORED = 16
"""Bundles of one origin that are remembered as stored."""
MAX_BROUGHT = 256
"""Origins that are remembered of one carrier."""
AGAIN_S = 600.0
"""For so long a carrier that connects anew is given the answers to what it brought."""

T = TypeVar("T")


@dataclass(slots=True)
class Origin:
    """One device that speaks through others.

    Attributes:
        hello: its last carried word; what receipts are bound to.
        said_at: when it was made, as its device signed, and not after it came; in seconds since 1970.
        carriers: who brought its bundles last, the newest at the end.
        stored: ids of its last bundles of which every letter is in IN.
    """

    hello: Hello | None = None
    said_at: float = 0.0
    carriers: tuple[Address, ...] = ()
    stored: tuple[str, ...] = ()


class Origins:
    """The devices whose bundles came last."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._origins: OrderedDict[Address, Origin] = OrderedDict()
        self._brought: OrderedDict[Address, OrderedDict[Address, float]] = OrderedDict()
        self.doubts = 0
        """How often what IN holds came into doubt."""

    def __len__(self) -> int:
        return len(self._origins)

    def get(self, address: Address) -> Origin:
        """What is known of a device, which may be nothing."""
        return self._origins.get(address, Origin())

    def known(self) -> list[Address]:
        """Devices that a bundle came from."""
        return list(self._origins)

    def brought(self, address: Address, carriers: Iterable[Address], now: float) -> None:
        """Carriers handed over something of a device; `now` is monotonic."""
        origin = self._touch(address)
        newest = tuple(carriers)
        for carrier in newest:
            others = self._brought.setdefault(carrier, OrderedDict())
            _renew(self._brought, carrier, others, self._limit)
            _renew(others, address, now, MAX_BROUGHT)
            while next(iter(others.values())) < now - AGAIN_S:
                others.popitem(last=False)
        while self._brought and _newest(next(iter(self._brought.values()))) < now - AGAIN_S:
            self._brought.popitem(last=False)
        kept = tuple(known for known in origin.carriers if known not in newest)
        origin.carriers = (*kept, *newest)[-MAX_CARRIERS:]

    def brought_by(self, carrier: Address, now: float) -> list[Address]:
        """Devices of which a carrier handed over something lately, the last in front."""
        brought = self._brought.get(carrier, OrderedDict())
        return [address for address, at in reversed(brought.items()) if at >= now - AGAIN_S]

    def heard(self, address: Address, hello: Hello, created: float, now: float) -> None:
        """A device's carried hello; one that was made before the last is late and says nothing.

        Args:
            address: the device.
            hello: its word.
            created: when the device says that it made the bundle. Its clock never goes behind what was proven to it,
                yet may be ahead.
            now: both in seconds since 1970.
        """
        origin, at = self._touch(address), min(created, now)
        if at >= origin.said_at:
            origin.hello, origin.said_at = hello, at

    def is_stored(self, address: Address, bundle: str) -> bool:
        """Whether all of a bundle is known to be in IN."""
        return bundle in self.get(address).stored

    def stored(self, address: Address, bundle: str) -> None:
        """Every letter of a bundle is in IN."""
        origin = self._touch(address)
        origin.stored = (*(known for known in origin.stored if known != bundle), bundle)[-MAX_STORED:]

    def doubt(self) -> None:
        """IN may hold less than was acknowledged."""
        self.doubts += 1
        for origin in self._origins.values():
            origin.stored = ()

    def _touch(self, address: Address) -> Origin:
        origin = self._origins.setdefault(address, Origin())
        _renew(self._origins, address, origin, self._limit)
        return origin


def _newest(brought: OrderedDict[Address, float]) -> float:
    return next(reversed(brought.values()))


def _renew(memory: OrderedDict[Address, T], address: Address, value: T, limit: int) -> None:
    memory[address] = value
    memory.move_to_end(address)
    if len(memory) > limit:
        memory.popitem(last=False)
