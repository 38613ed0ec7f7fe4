"""A piece that comes in slices, since whole it would fill a slow link for too long. Pure."""

from __future__ import annotations

import hashlib

from schemas.depot import PieceSlice


class Assembly:
    """Puts one piece together; believed for its digest alone, like any other.

    Attributes:
        digest: of the whole.
        length: of the whole, as the recipe says; None where only the slices know it (a recipe itself).
    """

    def __init__(self, digest: str, length: int | None = None) -> None:
        self.digest = digest
        self.length = length
        self._data = bytearray()

    @property
    def offset(self) -> int:
        """Where the next slice begins."""
        return len(self._data)

    def add(self, part: PieceSlice) -> bool:
        """Take a slice; False if it is not the one that is due."""
        total = part.total if self.length is None else self.length
        if part.digest != self.digest or part.offset != self.offset or not part.data or part.total != total:
            return False
        self.length = total
        self._data += part.data
        return True

    def whole(self) -> bytes | None:
        """All of it, once it is here; None before."""
        return bytes(self._data) if self.offset == self.length else None

    def true(self) -> bool:
        """Whether the whole is what its digest says; if not, it begins anew."""
        good = hashlib.sha256(self._data).hexdigest() == self.digest
        if not good:
            self._data.clear()
        return good
