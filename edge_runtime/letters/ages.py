"""How long letters have waited, by a clock that nobody sets: a device may start in 1970 and jump to today.

Time since the kernel's start, continued over restarts: what passes while the device is off is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from sqlite3 import Connection

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Elapsed = Callable[[], tuple[str, float]]
"""Which start of the kernel this is, and the seconds since then."""


def since_boot() -> tuple[str, float]:
    """By the kernel."""
    return _boot(), time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def _boot() -> str:
    return _BOOT_ID.read_text().strip()


def continue_age(connection: Connection, elapsed: Elapsed) -> float:
    """What is to be added to the seconds since this start; noted in the file's first transaction after a start."""
    boot, seconds = elapsed()
    known = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('boot', 'age_offset')").fetchall())
    if known.get("boot") == boot:
        with suppress(KeyError, ValueError):  # as after a start of the kernel, if somebody changed it
            return float(known["age_offset"])
    newest = connection.execute("SELECT born FROM letters ORDER BY rowid DESC LIMIT 1").fetchone()
    offset = (newest[0] if newest and newest[0] is not None else 0.0) - seconds
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [("boot", boot), ("age_offset", repr(offset))])
    return offset
