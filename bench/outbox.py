"""Durable enqueues: the outbox of a device beside bare SQLite and beside a file that is appended to and fsynced.

All three store the same payload, one by one, in the same folder and in turns of the same run, and each is on disk when
its call returns. The outbox besides keeps the order of its lanes, its bounds, its totals and the means to find a letter
again; bare SQLite is one table with one INSERT per transaction (WAL, `synchronous=FULL`).

Bytes written are what the kernel accounts to this process (`write_bytes` in /proc/self/io): whole pages of the page
cache, with what checkpoints copy; a flash translation layer may make more of it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import BenchError, arguments, conduct, percentile, say
from edge_runtime.letters.outbox import Entry, Outbox
from edge_runtime.settings import OutboxLimits
from schemas.events import Untyped

ROUNDS = 5
BATCH = 50
TEXT_BYTES = 200
"""Of the payload, which a sensor's reading with its context comes to."""


@dataclass(slots=True)
class Contestant:
    """One way to store a payload."""

    name: str
    store: Callable[[], object]
    at_once: int = 1
    """Payloads that one call stores."""
    rates: list[float] = field(default_factory=list)
    calls_s: list[float] = field(default_factory=list)
    written: int = 0
    stored: int = 0

    def run(self, payloads: int) -> None:
        """One round."""
        written, began = _written(), time.perf_counter()
        for _ in range(payloads // self.at_once):
            before = time.perf_counter()
            self.store()
            self.calls_s.append(time.perf_counter() - before)
        self.rates.append(payloads / (time.perf_counter() - began))
        self.written += _written() - written
        self.stored += payloads


def _written() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise BenchError("/proc/self/io has no write_bytes: this kernel does not account for what a process writes")


def _size(folder: Path, stem: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{stem}*"))


@contextmanager
def _contestants(folder: Path) -> Iterator[list[Contestant]]:
    payload = Untyped(label=3, text="x" * TEXT_BYTES)
    text = payload.model_dump_json()
    limits = OutboxLimits(max_letters=10_000_000, max_bytes=1 << 40)
    with ExitStack() as stack:
        outbox = stack.enter_context(closing(Outbox(folder / "outbox.db", limits, time.time)))
        batched = stack.enter_context(closing(Outbox(folder / "batched.db", limits, time.time)))
        if outbox.storage != "disk" or batched.storage != "disk":
            raise BenchError(f"measure in {folder}: the disk does not take letters; choose another with --folder")
        bare = stack.enter_context(closing(sqlite3.connect(folder / "bare.db", isolation_level=None)))
        bare.execute("PRAGMA journal_mode=WAL")
        bare.execute("PRAGMA synchronous=FULL")
        bare.execute("CREATE TABLE letters (id INTEGER PRIMARY KEY, data TEXT NOT NULL)")
        file = stack.enter_context((folder / "appended").open("ab", buffering=0))
        line = text.encode() + b"\n"

        def append() -> None:
            file.write(line)
            os.fsync(file.fileno())

        yield [
            Contestant("outbox", lambda: outbox.add("sample", payload, "normal")),
            Contestant(
                "batched", lambda: batched.add_many([Entry("sample", payload, "normal") for _ in range(BATCH)]), BATCH
            ),
            Contestant("bare", lambda: bare.execute("INSERT INTO letters (data) VALUES (?)", (text,))),
            Contestant("appended", append),
        ]


def measure(folder: Path, payloads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures, and how they spread.

    Args:
        folder: on the file system in question; emptied by the caller.
        payloads: stored by each contestant in each round.
    """
    with _contestants(folder) as contestants:
        for contestant in contestants:
            contestant.run(BATCH)  # files, caches and statements are there from now on
            contestant.rates.clear()
            contestant.calls_s.clear()
            contestant.written = contestant.stored = 0
        sizes = {contestant.name: _size(folder, contestant.name) for contestant in contestants}
        for number in range(ROUNDS):
            say(f"round {number + 1} of {ROUNDS}")
            # Each begins a round in turn, so that none is always the first after another's writes.
            for contestant in contestants[number % 4 :] + contestants[: number % 4]:
                contestant.run(payloads)
        found = {contestant.name: contestant for contestant in contestants}
        growth = {name: (_size(folder, name) - before) / found[name].stored for name, before in sizes.items()}
    outbox, batched, bare, appended = (found[name] for name in ("outbox", "batched", "bare", "appended"))
    figures = {
        "letters_per_s": round(median(outbox.rates)),
        "bytes_written_per_letter": round(outbox.written / outbox.stored),
        "sqlite_per_s": round(median(bare.rates)),
        "append_fsync_per_s": round(median(appended.rates)),
        "letters_batched_per_s": round(median(batched.rates)),
        "add_p99_ms": round(percentile(outbox.calls_s, 99) * 1_000, 3),
        "batched_bytes_per_letter": round(batched.written / batched.stored),
        "sqlite_bytes_per_row": round(bare.written / bare.stored),
        "append_bytes_per_line": round(appended.written / appended.stored),
    }
    spread = {name: {"lowest": round(min(c.rates)), "highest": round(max(c.rates))} for name, c in found.items()}
    return figures, {"file_growth_per_letter": {k: round(v) for k, v in growth.items()}, "rates_per_s": spread}


async def _bench(parent: Path | None, payloads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="causeway-bench-", dir=parent) as name:
        figures, extra = measure(Path(name), payloads)
        return figures, {"file_system": _file_system(Path(name)), **extra}


def _file_system(folder: Path) -> str:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    holds = [(point, kind) for _, point, kind, *_ in mounts if folder.resolve().is_relative_to(point)]
    return max(holds, key=lambda found: len(found[0]), default=("", "unknown"))[1]


def main() -> None:
    """Entry point."""
    parser = arguments("outbox", __doc__ or "")
    parser.add_argument("--folder", type=Path, help="where to measure (default: the system's folder for such)")
    options = parser.parse_args()
    payloads = 500 if options.quick else 5_000
    conduct(
        "outbox",
        _bench(options.folder, payloads),
        [],
        parameters={"rounds": ROUNDS, "payloads_per_round": payloads, "batch": BATCH, "text_bytes": TEXT_BYTES},
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
