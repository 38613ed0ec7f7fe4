"""State messages that cannot be sent at the moment: the newest of each kind and key; what is older is worth nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

MAX_HOLES = 64


class Pigeonholes:
    """In memory and bounded; the one that was filled longest ago is emptied for a new one.

    Attributes:
        replaced: messages that a newer one took the place of.
    """

    def __init__(self) -> None:
        self._holes: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self.replaced = 0

    def __len__(self) -> int:
        return len(self._holes)

    def put(self, kind: str, key: str, raw: bytes) -> None:
        """Keep a message until it can be sent."""
        if self._holes.pop((kind, key), None) is not None:
            self.replaced += 1
        self._holes[kind, key] = raw
        if len(self._holes) > MAX_HOLES:
            self._holes.popitem(last=False)
            self.replaced += 1

    def drop(self, kind: str) -> None:
        """Empty those of a kind."""
        for hole in [hole for hole in self._holes if hole[0] == kind]:
            del self._holes[hole]

    def empty(self, send: Callable[[str, bytes], bool]) -> None:
        """Send all, oldest first, for as long as `send` (kind, message) takes them."""
        while self._holes:
            (kind, key), raw = next(iter(self._holes.items()))
            if not send(kind, raw):
                return
            del self._holes[kind, key]
