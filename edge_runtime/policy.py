"""How the device behaves under its owner's limits, the platform's wishes and its own condition. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.settings import OwnerLimits
from schemas.registry import Heartbeat, Twin

DEFAULT_HEARTBEAT_S = 30.0


def heartbeat_interval_s(owner: float | None, twin: Twin | None) -> float:
    """The owner's interval, else the platform's, else 30 s."""
    if owner is not None:
        return owner
    return twin.heartbeat_s if twin is not None else DEFAULT_HEARTBEAT_S


def tightened(limits: OwnerLimits, twin: Twin | None) -> OwnerLimits:
    """The owner's limits; the twin may only tighten them."""
    if twin is None:
        return limits
    update: dict[str, float] = {}
    if twin.max_cpu_percent is not None:
        update["max_cpu_percent"] = max(1.0, min(limits.max_cpu_percent, twin.max_cpu_percent))
    if twin.min_battery_percent is not None:
        update["min_battery_percent"] = max(limits.min_battery_percent, twin.min_battery_percent)
    if twin.throttle_temp_c is not None:
        update["max_temp_c"] = min(limits.max_temp_c, twin.throttle_temp_c)
    return limits.model_copy(update=update)


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whether work may start; `reason` and `message` say why not."""

    allowed: bool
    reason: str | None = None
    message: str = ""


def may_work(limits: OwnerLimits, reading: Heartbeat, *, training: bool) -> Allowance:
    """Whether a task (or training) may start now. A reading that is missing holds nothing back."""
    what = "training" if training else "tasks"
    if not (limits.training if training else limits.tasks):
        return Allowance(allowed=False, reason="owner_limits", message=f"the owner of this device allows no {what}")
    battery = reading.battery_percent
    powered = reading.charging is True and reading.discharging is not True
    if battery is not None and battery < limits.min_battery_percent and not powered:
        message = f"battery at {battery:g} %, the limit is {limits.min_battery_percent:g} %"
        return Allowance(allowed=False, reason="battery", message=message)
    if reading.temp_c is not None and reading.temp_c > limits.max_temp_c:
        message = f"{reading.temp_c:g} degrees C, the limit is {limits.max_temp_c:g}"
        return Allowance(allowed=False, reason="heat", message=message)
    return Allowance(allowed=True)
