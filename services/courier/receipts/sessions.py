"""Which session each device speaks in, as its last hello said; a receipt is bound to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from schemas.ids import Address


class Sessions(OrderedDict[Address, str]):
    """The latest session of the devices that spoke most recently, bounded."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def learn(self, address: Address, session: str) -> bool:
        """A device said hello; whether in another session than before."""
        is_new = self.get(address) != session
        self[address] = session
        self.move_to_end(address)
        if len(self) > self._limit:
            self.popitem(last=False)
        return is_new

    def remember(self, saved: Mapping[Address, str]) -> None:
        """Take over saved sessions of devices that have not spoken since."""
        for address, session in saved.items():
            if address not in self:
                self.learn(address, session)
