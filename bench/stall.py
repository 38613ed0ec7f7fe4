"""What else stood still while letters waited: a probe of the disk and of the processors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.1
BLOCK = bytes(4_096)
STALL_S = 1.0
"""From this wait on a receipt's delay is a stall, which no queue of this bench explains."""


@dataclass(slots=True)
class Probe:
    """The longest of each so far, in seconds.

    Attributes:
        fsync_s: to write 4 KiB and have it on disk.
        overslept_s: beyond the time that a thread wanted to sleep; long where processors are taken.
    """

    fsync_s: float = 0.0
    overslept_s: float = 0.0

    def explain(self, waited_s: float) -> dict[str, float]:
        """Figures of a stall, nothing if the longest wait was none."""
        if waited_s <= STALL_S:
            return {}
        return {
            "stall_s": round(waited_s, 2),
            "longest_fsync_s": round(self.fsync_s, 3),
            "longest_overslept_s": round(self.overslept_s, 3),
        }


@contextmanager
def probing(folder: Path) -> Iterator[Probe]:
    """Write and fsync a file of `folder` ten times a second; the last fsync is waited for."""
    probe, ended = Probe(), threading.Event()
    with (folder / "probe").open("wb", buffering=0) as file:
        thread = threading.Thread(target=_measure, args=(file.fileno(), probe, ended), name="probe")
        thread.start()
        try:
            yield probe
        finally:
            ended.set()
            thread.join()


def _measure(file: int, probe: Probe, ended: threading.Event) -> None:
    before = time.monotonic()
    while not ended.wait(EVERY_S):
        woke = time.monotonic()
        probe.overslept_s = max(probe.overslept_s, woke - before - EVERY_S)
        os.pwrite(file, BLOCK, 0)
        os.fsync(file)
        before = time.monotonic()
        probe.fsync_s = max(probe.fsync_s, before - woke)
