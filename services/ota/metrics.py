"""Counters of the ota service."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from typing import get_args

from prometheus_client import Counter, Gauge

from services.kit.api.ota import RolloutState
from services.ota.rollout import Rollout

ROLLOUTS = Gauge("causeway_rollouts", "Rollouts, by state.", ["state"])
REPORTS = Counter("causeway_reports_total", "Reports of devices about assignments, by outcome.", ["outcome"])
STATES: tuple[RolloutState, ...] = get_args(RolloutState)


def count_rollouts(rollouts: Iterable[Rollout]) -> None:
    """Set the gauge."""
    found = Tally(rollout.head.state for rollout in rollouts)
    for state in STATES:
        ROLLOUTS.labels(state).set(found[state])
