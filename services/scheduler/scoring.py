"""What a device is worth for a task, and why it may not have one. Pure: readings in, numbers and sentences out.

A reading that is missing is not zero, and zero is not missing: a battery of 0 % refuses, a load that was not read
counts as half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt

from services.kit.api.registry import DeviceView
from services.kit.api.scheduler import Requires

UNREAD_IDLE = 0.5
"""Idle share of a device that does not say its load."""
LEAST_IDLE = 0.05
"""A loaded device still works at low priority; with 0 the running tasks would no longer count and all would pile up."""
LEAST_SUCCESS = 0.05
UNREAD_HEAT = 0.9
LEAST_HEAT = 0.25
HEAT_MARGIN_C = 15.0
"""Below the limit by more than this, heat does not count; from there it falls to LEAST_HEAT at the limit."""
LEAST_POWER = 0.5
MAX_LEASES_PER_DEVICE = 32
"""As many as a heartbeat can name; more wait in the queue, where any device can still take them."""

REFERENCE_GFLOPS = 20.0
REFERENCE_SHA256_MB_S = 500.0
"""One core of the reference machine has speed 1."""
MIN_SPEED = 0.05
MAX_SPEED = 20.0
"""A device measures itself; the bound keeps a boaster from taking everything."""


@dataclass(frozen=True, slots=True)
class Track:
    """What earlier tasks have shown of a device.

    Attributes:
        speed: of one core, relative to the reference; None: never measured.
    """

    succeeded: int = 0
    failed: int = 0
    speed: float | None = None

    @property
    def success_share(self) -> float:
        """Share of successes, with one success assumed so that the first failure does not condemn."""
        return max(LEAST_SUCCESS, (self.succeeded + 1) / (self.succeeded + self.failed + 1))


@dataclass(frozen=True, slots=True)
class Node:
    """A device as placement sees it."""

    view: DeviceView
    track: Track = Track()
    running: int = 0
    """Leases that it holds."""

    @property
    def device(self) -> str:
        """Its name in its fleet."""
        return self.view.device


def ineligible(node: Node, runner: str, requires: Requires, ram_mb: int) -> str | None:
    """Why a device may not have such a task; None if it may.

    Args:
        node: the device.
        runner: entry point that must be installed.
        requires: what the task's owner asks for.
        ram_mb: the most that the task may use.
    """
    view = node.view
    missing = _absent(view, requires) or _unequipped(view, runner, requires)
    if missing is not None:
        return missing
    if view.heartbeat is None:
        return "no heartbeat yet"
    return (
        full(node)
        or _short_of_power(node, requires)
        or _too_hot(view.heartbeat.temp_c, requires)
        or _short_of_memory(node, max(requires.ram_free_mb, ram_mb))
    )


def full(node: Node) -> str | None:
    """Whether a device holds as many tasks as it may."""
    if node.running >= MAX_LEASES_PER_DEVICE:
        return f"holds {node.running} tasks, the most that one device may"
    return None


def _absent(view: DeviceView, requires: Requires) -> str | None:
    if requires.devices is not None and view.device not in requires.devices:
        return "not among the chosen devices"
    if view.standing != "enrolled":
        return f"standing is {view.standing}"
    return None if view.online else "offline"


def _unequipped(view: DeviceView, runner: str, requires: Requires) -> str | None:
    if runner not in view.capabilities.runners:
        return f"runner {runner} is not installed"
    if requires.dataset is not None and requires.dataset not in view.capabilities.datasets:
        return f"has no dataset {requires.dataset}"
    return None


def charging(view: DeviceView) -> bool:
    """Charging and not discharging: some chargers report both when they cannot keep up."""
    return view.heartbeat is not None and view.heartbeat.charging is True and view.heartbeat.discharging is not True


def _short_of_power(node: Node, requires: Requires) -> str | None:
    beat = node.view.heartbeat
    assert beat is not None
    if charging(node.view):
        return None
    if beat.battery_percent is not None:
        if beat.battery_percent < requires.min_battery_percent:
            return f"battery {beat.battery_percent:.0f} % is below {requires.min_battery_percent:.0f} %, not charging"
        return None
    return "runs on a battery whose level is not read" if node.view.capabilities.battery else None


def _too_hot(temp_c: float | None, requires: Requires) -> str | None:
    if temp_c is not None and temp_c > requires.max_temp_c:
        return f"{temp_c:.0f} C is above {requires.max_temp_c:.0f} C"
    return None


def _short_of_memory(node: Node, needed_mb: int) -> str | None:
    beat = node.view.heartbeat
    assert beat is not None
    free, kind = beat.ram_free_mb, "free"
    if free is None:
        free, kind = node.view.capabilities.ram_mb, "in all, free is not read"
    return f"memory {free} MB {kind}, below {needed_mb} MB" if free < needed_mb else None


@dataclass(frozen=True, slots=True)
class Worth:
    """The factors of a score."""

    cores: int
    idle: float
    speed: float
    success: float
    power: float
    heat: float

    @property
    def base(self) -> float:
        """The score of an unoccupied device."""
        return self.cores * self.idle * self.speed * self.success * self.power * self.heat

    def score(self, running: int) -> float:
        """Absolute score with this many tasks in hand."""
        return self.base / (1 + running)

    def explain(self, running: int) -> str:
        """The same as a sentence."""
        return (
            f"{self.cores} cores x {self.idle:.2f} idle x {self.speed:.2f} speed x {self.success:.2f} success"
            f" / (1 + {running} running) x {self.power:.2f} power x {self.heat:.2f} heat"
        )


def worth(node: Node, requires: Requires) -> Worth:
    """The factors of one device for one kind of task; every factor is above 0."""
    capabilities, beat = node.view.capabilities, node.view.heartbeat
    track = node.track
    idle, power, heat = UNREAD_IDLE, 1.0, UNREAD_HEAT
    if beat is not None:
        # The load average is calmer than the momentary ratio, and counts what waits for a core.
        ratio = beat.load / capabilities.cpu_count if beat.load is not None else beat.cpu_ratio
        idle = UNREAD_IDLE if ratio is None else min(1.0, max(LEAST_IDLE, 1.0 - ratio))
        power = _power(node.view)
        heat = _heat(beat.temp_c, requires.max_temp_c)
    return Worth(
        cores=capabilities.cpu_count,
        idle=idle,
        speed=1.0 if track.speed is None else track.speed,
        success=track.success_share,
        power=power,
        heat=heat,
    )


def _power(view: DeviceView) -> float:
    percent = view.heartbeat.battery_percent if view.heartbeat else None
    if percent is None or charging(view):
        return 1.0
    return LEAST_POWER + (1.0 - LEAST_POWER) * percent / 100.0


def _heat(temp_c: float | None, max_temp_c: float) -> float:
    if temp_c is None:
        return UNREAD_HEAT
    margin = (max_temp_c - temp_c) / HEAT_MARGIN_C
    return min(1.0, max(LEAST_HEAT, LEAST_HEAT + (1.0 - LEAST_HEAT) * margin))


def relative_speed(output: Mapping[str, object]) -> float | None:
    """Speed of one core by the figures of `profile@1`: geometric mean of arithmetic and hashing, bounded.

    Returns:
        None if the figures are missing or make no sense.
    """
    gflops, hashing = output.get("gflops"), output.get("sha256_mb_s")
    if not (_positive(gflops) and _positive(hashing)):
        return None
    assert isinstance(gflops, int | float)
    assert isinstance(hashing, int | float)
    return min(MAX_SPEED, max(MIN_SPEED, sqrt(gflops / REFERENCE_GFLOPS * hashing / REFERENCE_SHA256_MB_S)))


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0
