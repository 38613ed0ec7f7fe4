"""So many a minute, so that a flood of bad messages does not become a flood of reports."""

from __future__ import annotations


class Budget:
    """A token bucket."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._tokens = float(per_minute)
        self._last: float | None = None

    def take(self, now: float) -> bool:
        """Take one; False if there is none. `now` in monotonic seconds."""
        if self._last is not None:
            self._tokens = min(self._per_minute, self._tokens + (now - self._last) * self._per_minute / 60)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
