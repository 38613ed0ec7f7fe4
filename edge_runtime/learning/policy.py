"""Whether this device trains now. The owner's limits win over the platform; a missing reading forbids nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from edge_runtime.learning.catalogue import known_estimators
from edge_runtime.settings import EdgeSettings
from schemas.aggregator import Round
from schemas.registry import Heartbeat


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a round is answered without training."""

    reason: str
    message: str


def refuse(invitation: Round, settings: EdgeSettings, reading: Heartbeat, now: datetime) -> Refusal | None:
    """Decide about an invitation; None means: train."""
    return _unable(invitation, settings, now) or _unfit(settings, reading)


def _unable(invitation: Round, settings: EdgeSettings, now: datetime) -> Refusal | None:
    if not settings.limits.training:
        return Refusal("training_off", "the owner does not allow training (limits.training)")
    if invitation.deadline <= now:
        return Refusal("too_late", f"the round closed at {invitation.deadline.isoformat()}")
    if invitation.dataset not in settings.datasets:
        return Refusal("no_dataset", f"there is no dataset {invitation.dataset} here")
    if invitation.estimator not in known_estimators(settings.estimators):
        return Refusal("no_estimator", f"estimator {invitation.estimator} is not installed here")
    return None


def _unfit(settings: EdgeSettings, reading: Heartbeat) -> Refusal | None:
    limits, battery = settings.limits, reading.battery_percent
    powered = bool(reading.charging) and not reading.discharging
    if battery is not None and not powered and battery < limits.min_battery_percent:
        return Refusal(
            "battery", f"battery at {battery:g} %, the owner wants {limits.min_battery_percent:g} % to train"
        )
    if reading.temp_c is not None and reading.temp_c > limits.max_temp_c:
        return Refusal("heat", f"{reading.temp_c:g} C, the owner allows {limits.max_temp_c:g} C")
    return None
