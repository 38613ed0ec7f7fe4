"""Time on a device that may have no clock, or one that stands in 2040.

A synchronised system clock is believed. Any other is only a guess, and what services have signed counts for more: the
answer to hello names this connection's session, which nobody knew before, so it was signed just now. From then on time
runs by the monotonic clock, whatever the system's clock says or jumps to. Before that the latest time that any letter
has proven is a floor.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import time
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path

from schemas.events import utc

_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_STA_UNSYNC = 0x40
LOOK_AGAIN_S = 10.0
"""How long the answer whether the system's clock is synchronised holds."""
UNSURE_LIFE = timedelta(days=3_650)
_TIMEX_BYTES = 256
_STATUS_LONGS = 5
"""`status` follows `modes` and four longs in the kernel's struct timex."""


class FlooredClock:
    """Implements `ports.Clock`.

    Args:
        floor: latest proven time, None if there is none.
        system: seconds since 1970.
        synchronised: whether the system's clock follows a time server.
        running: seconds that never jump and count while the machine sleeps.
    """

    def __init__(
        self,
        floor: Callable[[], datetime | None],
        system: Callable[[], float] = time.time,
        synchronised: Callable[[], bool] | None = None,
        running: Callable[[], float] | None = None,
    ) -> None:
        self._floor = floor
        self._system = system
        self._synchronised = synchronised or system_is_synchronised
        self._running = running or since_boot_s
        self._looked = float("-inf")
        self._last = False
        self._ahead: dict[str, float] = {}
        """Seconds between `running` and the time that each key signed just now."""

    def now(self) -> datetime:
        """UTC, as well as it is known."""
        if self.synchronised():
            return utc(self._system())
        proven = self.certainly_past()
        if self._ahead and proven is not None:
            return proven
        system = utc(self._system())
        return system if proven is None or system >= proven else proven

    def certainly_past(self) -> datetime | None:
        """A moment that is over for sure; None if there is no proof of any. For judging what has expired."""
        if self.synchronised():
            return utc(self._system())
        floor = self._floor()
        if not self._ahead:
            return floor
        anchored = utc(max(self._ahead.values()) + self._running())
        return anchored if floor is None else max(anchored, floor)

    @property
    def known(self) -> bool:
        """Whether `now` is the time, and no guess."""
        return self.synchronised() or bool(self._ahead)

    def anchor(self, keyid: str, signed: datetime) -> bool:
        """A key has signed this moment in answer to something that was said just now.

        Of several answers the one that took least time on its way counts. Returns whether the time was a guess before.
        """
        guessed = not self.known
        ahead = signed.timestamp() - self._running()
        self._ahead[keyid] = max(ahead, self._ahead.get(keyid, ahead))
        return guessed

    def keep_anchors(self, keyids: Collection[str]) -> None:
        """Forget what keys said that are no longer listed: one of them may have been stolen."""
        self._ahead = {keyid: ahead for keyid, ahead in self._ahead.items() if keyid in keyids}

    def life(self, usual: timedelta) -> timedelta:
        """How long something that is signed now may live: without a known time, until long after any plausible one."""
        return usual if self.known else max(usual, UNSURE_LIFE)

    def synchronised(self) -> bool:
        """Whether the system's clock is trusted as it is."""
        now = self._running()
        if now >= self._looked + LOOK_AGAIN_S:
            self._looked, self._last = now, self._synchronised()
        return self._last


def since_boot_s() -> float:
    """Seconds that never jump; on Linux they count while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def system_is_synchronised() -> bool:
    """Ask the kernel (adjtimex(2)), then systemd."""
    return _TIMESYNC.exists() or (sys.platform == "linux" and _kernel_is_synchronised())


def _kernel_is_synchronised() -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: read only
    if library.adjtimex(buffer) < 0:
        return False
    offset = _STATUS_LONGS * ctypes.sizeof(ctypes.c_long)
    status = int.from_bytes(buffer.raw[offset : offset + 4], sys.byteorder)
    return not status & _STA_UNSYNC
