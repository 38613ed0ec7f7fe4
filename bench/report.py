"""How a bench says what it measured, on what machine, and whether that meets its target."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

import structlog

from services.kit.errors import PlatformError


class BenchError(Exception):
    """A measurement could not be taken; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on one figure; a figure that could not be taken meets nothing."""

    figure: str
    bound: float
    at_least: bool

    def judge(self, value: float | None) -> dict[str, Any]:
        """The figure beside its bound."""
        met = value is not None and (value >= self.bound if self.at_least else value <= self.bound)
        return {"value": value, "at_least" if self.at_least else "at_most": self.bound, "met": met}


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of: nothing was measured")
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "ram_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def arguments(program: str, about: str) -> argparse.ArgumentParser:
    """Options that every bench has."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{program}", description=about)
    parser.add_argument("--quick", action="store_true", help="a short run that shows that it works; not for figures")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path(".venv-peers"),
        help="environment that `make peers` made (default: .venv-peers)",
    )
    return parser


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def conduct(
    bench: str,
    work: Coroutine[Any, Any, tuple[dict[str, Any], dict[str, Any]]],
    targets: Sequence[Target],
    *,
    parameters: dict[str, Any],
    as_json: bool,
) -> None:
    """Measure and print: the figures first, then how they were taken. Ends with 1 and a sentence if that fails.

    Args:
        bench: name of the program.
        work: returns the figures, and what else is worth knowing.
        targets: what the figures are compared with.
        parameters: how the figures are taken.
        as_json: print JSON instead of a table.
    """
    # Standard output is for the answer.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    before = machine()
    try:
        figures, extra = asyncio.run(work)
    except (BenchError, PlatformError) as error:
        raise SystemExit(f"bench.{bench}: {error}") from None
    answer = {
        **figures,
        "bench": bench,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": before,
        "parameters": parameters,
        **extra,
        "targets": {target.figure: target.judge(figures.get(target.figure)) for target in targets},
    }
    print(json.dumps(answer, indent=1)) if as_json else show(answer)


def show(answer: dict[str, Any]) -> None:
    """Print an answer as a table for people."""
    print(f"\nbench.{answer['bench']}  {answer['date']}")
    for name, value in answer.items():
        if name in {"bench", "date", "targets"}:
            continue
        if isinstance(value, dict):
            print(f"  {name}")
            for key, inner in value.items():
                for one in inner if isinstance(inner, list) else [inner]:
                    print(f"    {key:<28} {one}")
        else:
            print(f"  {name:<30} {'-' if value is None else value}")
    print("  targets")
    for name, judged in answer["targets"].items():
        bound = f"<= {judged['at_most']}" if "at_most" in judged else f">= {judged['at_least']}"
        print(f"    {name:<28} {judged['value']} (target {bound}): {'met' if judged['met'] else 'NOT MET'}")


def _first(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return "unknown"
