"""Limits of the ota service."""

from __future__ import annotations

from datetime import timedelta

TICK_S = 0.5
"""How often deadlines are looked at; reports are acted on at once."""
CATCH_UP = timedelta(days=7)
"""How long after its wave's deadline a device of the last wave may still begin."""
QUIET_START_S = 5.0
"""After a start or reconnect nobody is called silent: reports that came meanwhile may still wait in IN."""
MAX_APPLIED = 16
"""Reports per device that are recorded; one of them is always left for the verdict."""
MAX_ROLLOUTS = 200
"""Kept; beyond it the oldest that is over makes room."""
PIPELINE = 64
"""Writes to the bus in flight."""
MAX_ANSWER_BYTES = 900_000
"""Of `show`; the bus carries 1 MB."""
