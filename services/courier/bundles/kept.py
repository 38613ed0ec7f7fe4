"""The last answer to each device, for carriers that did not get it. Pure, bounded in bytes and in time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from schemas.bundles import Parcel
from schemas.ids import Address
from services.courier.bundles.origins import AGAIN_S


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer as it was sent.

    Attributes:
        size: of its frames, in bytes.
        at: when it was made, monotonic.
        doubts: how often what IN holds had come into doubt by then; what it acknowledges holds no longer than that.
    """

    parcels: tuple[Parcel, ...]
    size: int
    at: float
    doubts: int


class KeptAnswers:
    """The newest answers; those that have to go are asked for by their device's next bundle."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[Address, Kept] = OrderedDict()
        self.size = 0

    def put(self, address: Address, parcels: tuple[Parcel, ...], now: float, doubts: int) -> None:
        """Keep an answer in place of the device's former one."""
        former = self._kept.pop(address, None)
        kept = Kept(parcels, sum(len(parcel.write()) for parcel in parcels), now, doubts)
        self._kept[address] = kept
        self.size += kept.size - (former.size if former else 0)
        while self._kept and (self.size > self._limit or next(iter(self._kept.values())).at < now - AGAIN_S):
            self.size -= self._kept.popitem(last=False)[1].size

    def of(self, address: Address, now: float) -> Kept | None:
        """The last answer to a device, if it is not too old."""
        kept = self._kept.get(address)
        return kept if kept is not None and kept.at >= now - AGAIN_S else None
