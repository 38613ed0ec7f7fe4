"""How much to ask for at a time, and how long to wait. Pure: measurements in, numbers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from schemas.events import MAX_PIECE_BYTES

MIN_WINDOW_BYTES = 4 * 1_024
START_WINDOW_BYTES = 16 * 1_024
"""2.6 s of a link of 50 kbit/s, while its rate is not known."""
MAX_WINDOW_BYTES = 1 << 20
"""The server cuts a connection that has 4 MB waiting."""
WINDOW_S = 3.0
"""A window is what the link carries in this time: letters and keep-alive wait behind it."""
MIN_STALL_S = 2.0
MAX_STALL_S = 60.0
MIN_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0


class Pace:
    """Fits the window to the link: grows while pieces come, halves when they stop.

    Args:
        chance: uniform in [0, 1), for the jitter of pauses.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._bytes = float(START_WINDOW_BYTES)
        self._asked = 0
        self._stalls = 0
        self._pause = MIN_PAUSE_S

    @property
    def window_bytes(self) -> int:
        """Bytes that may be outstanding."""
        return int(self._bytes)

    @property
    def stall_s(self) -> float:
        """Without a piece for so long, the rest of a window is given up as lost; longer after each loss."""
        return float(min(MAX_STALL_S, MIN_STALL_S * 2**self._stalls))

    def window(self, missing: Mapping[str, int], limit: int, granted_bytes: int = MAX_WINDOW_BYTES) -> list[str]:
        """The next pieces to ask for: in order, at least one.

        Args:
            missing: length by digest.
            limit: pieces at most.
            granted_bytes: of them at most, whatever the link did so far.
        """
        allowed = min(self._bytes, granted_bytes)
        chosen: list[str] = []
        self._asked = 0
        for digest, length in missing.items():
            if chosen and (len(chosen) >= limit or self._asked + length > allowed):
                break
            chosen.append(digest)
            self._asked += min(length, MAX_PIECE_BYTES)
        return chosen

    def slice(self, length: int, offset: int, granted_bytes: int = MAX_WINDOW_BYTES) -> int | None:
        """How much to ask for of a piece of `length` bytes, of which `offset` are here; None: for all of it at once."""
        allowed = int(min(self._bytes, granted_bytes))
        if not offset and length <= allowed:
            return None
        self._asked = min(allowed, length - offset)
        return self._asked

    def completed(self, took_s: float, round_trip_s: float = 0.0) -> None:
        """All of a window came, the first of it after a round trip."""
        rate = self._asked / max(took_s - round_trip_s, 1e-3)
        self._bytes = min(MAX_WINDOW_BYTES, max(MIN_WINDOW_BYTES, min(2 * self._bytes, rate * WINDOW_S)))
        self._stalls = 0
        self._pause = MIN_PAUSE_S

    def stalled(self, *, some_came: bool) -> None:
        """Pieces of a window did not come; only where none did may the link be slower than the wait."""
        self._bytes = max(MIN_WINDOW_BYTES, self._bytes / 2)
        self._stalls = 0 if some_came else min(self._stalls + 1, 8)

    def pause_s(self) -> float:
        """How long to rest after nothing came at all: exponential, full jitter."""
        pause = self._pause * (0.5 + 0.5 * self._chance())
        self._pause = min(MAX_PAUSE_S, 2 * self._pause)
        return pause
