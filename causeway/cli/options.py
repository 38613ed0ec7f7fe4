"""Options that several commands share, and numbers that say what is allowed when they got something else."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from causeway.cli.common import EXIT_USAGE, explained, fail
from schemas.ids import Address
from services.kit.folder import StateFolder
from services.kit.settings import load_settings

DAY_S = 86_400

Fleet = Annotated[str | None, typer.Option("--fleet", help="Fleet (default: the platform's).")]
Devices = Annotated[list[str] | None, typer.Option("--device", help="Only these devices; repeat it.")]


def whole(*flags: str, text: str, low: int = 1, high: float = inf) -> Any:
    """Option that takes a whole number; the range stands in its help."""
    return _option(flags, text, int, low, high)


def number(*flags: str, text: str, low: float = 0.0, high: float = inf) -> Any:
    """Option that takes a finite number; the range stands in its help."""
    return _option(flags, text, float, low, high)


def whole_argument(text: str) -> Any:
    """Argument that is a whole number from 1 up."""
    return typer.Argument(help=text, parser=_reader("NUMBER", int, 1, inf))


def platform_fleet(state: Path) -> str:
    """Fleet of commands that name none; ends the program as `explained` says."""
    with explained():
        return load_settings(StateFolder(state.absolute())).fleet


def address(text: str, state: Path) -> Address:
    """The device that `fleet/device`, or `device` of the platform's fleet, names."""
    first, separator, rest = text.partition("/")
    with explained():
        return Address(first, rest) if separator else Address(platform_fleet(state), first)


def _option(flags: tuple[str, ...], text: str, kind: type[float], low: float, high: float) -> Any:
    reader = _reader(flags[0], kind, low, high)
    return typer.Option(*flags, help=text, parser=reader, metavar=reader.__name__)


def _reader(name: str, kind: type[float], low: float, high: float) -> Callable[[str | float], float]:
    lowest, highest = f"{low:.15g}", "" if high == inf else f"{high:.15g}"

    def read(text: str | float) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = low - 1
        if not (low <= value <= high and value < inf):
            thing = "whole number" if kind is int else "number"
            upward = f"to {highest}" if highest else "up"
            fail(f"{name} takes a {thing} from {lowest} {upward}, got {str(text)[:60]!r}", EXIT_USAGE)
        return value

    read.__name__ = f"{lowest}..{highest}"
    return read
