"""Time on a device that may have no clock: the system's if synchronised, else at least what letters have proven."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from schemas.events import utc

_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_STA_UNSYNC = 0x40
_TIMEX_BYTES = 256
_STATUS_LONGS = 5
"""`status` follows `modes` and four longs in the kernel's struct timex."""


class FlooredClock:
    """Implements `ports.Clock`.

    Args:
        floor: latest proven time, None if there is none.
        system: seconds since 1970.
        synchronised: whether the system's clock follows a time server.
    """

    def __init__(
        self,
        floor: Callable[[], datetime | None],
        system: Callable[[], float] = time.time,
        synchronised: Callable[[], bool] | None = None,
    ) -> None:
        self._floor = floor
        self._system = system
        self._synchronised = synchronised or system_is_synchronised

    def now(self) -> datetime:
        """UTC."""
        system = utc(self._system())
        floor = self._floor()
        if floor is None or system >= floor or self._synchronised():
            return system
        return floor

    def synchronised(self) -> bool:
        """Whether the system's clock is trusted as it is."""
        return self._synchronised()


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
