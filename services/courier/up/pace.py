"""How many letters of one device are looked at: no device keeps the courier from the others. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW_S = 1.0
"""In one window a device may send what it may send in that time on average. Short, since what is taken of a flood at
the window's beginning delays the others."""


@dataclass(slots=True)
class Pace:
    """Counts per sender and window; what it remembers is bounded by who speaks in one window."""

    per_minute: int
    _until: float = 0.0
    _counts: dict[str, int] = field(default_factory=dict)

    def admits(self, sender: str, now: float) -> bool:
        """Whether one more letter is to be looked at; `now` in seconds, whose jumps only begin a window early."""
        if now >= self._until or now < self._until - WINDOW_S:
            self._until = now + WINDOW_S
            self._counts.clear()
        count = self._counts.get(sender, 0) + 1
        self._counts[sender] = count
        return count <= self.per_minute * WINDOW_S / 60.0


def sender_of(subject: str) -> str:
    """Whose letter it is, by the subject on which the bus let it be published."""
    return subject[: subject.rfind(".letter.")]
