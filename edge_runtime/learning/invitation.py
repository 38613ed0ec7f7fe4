"""Whether this device trains now. The owner's limits win over the platform; a missing reading forbids nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from edge_runtime.conduct.policy import may_work
from edge_runtime.learning.catalogue import known_estimators
from edge_runtime.settings import EdgeSettings, OwnerLimits
from schemas.aggregator import Round
from schemas.registry import Heartbeat


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a round is answered without training."""

    reason: str
    message: str


def refuse(
    invitation: Round, settings: EdgeSettings, limits: OwnerLimits, reading: Heartbeat, now: datetime
) -> Refusal | None:
    """Decide about an invitation; None means: train."""
    if invitation.deadline <= now:
        return Refusal("too_late", f"the round closed at {invitation.deadline.isoformat()}")
    if invitation.dataset not in settings.datasets:
        return Refusal("no_dataset", f"there is no dataset {invitation.dataset} here")
    if invitation.estimator not in known_estimators(settings.estimators):
        return Refusal("no_estimator", f"estimator {invitation.estimator} is not installed here")
    allowance = may_work(limits, reading, training=True)
    return None if allowance.allowed else Refusal(allowance.reason or "owner_limits", allowance.message)
