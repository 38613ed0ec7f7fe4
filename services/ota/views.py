"""How rollouts are shown. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import BaseModel

from services.kit.api.ota import DeviceProgress, RolloutView
from services.ota.rollout import Rollout, Turn
from services.ota.settings import MAX_ANSWER_BYTES

_URGENCY = {"failed": 0, "silent": 1, "assigned": 2, "late": 3, "pending": 4, "succeeded": 5}


class RolloutEvent(BaseModel):
    """What `rollout-created`, `rollout-wave`, `rollout-done`, `rollout-halted` and `rollout-aborted` announce."""

    rollout: str
    model: str
    version: str
    fleet: str
    state: str
    wave: int
    waves: int
    reason: str | None = None
    counts: dict[str, int]


def view(rollout: Rollout, *, devices: bool = True) -> dict[str, Any]:
    """A rollout for `show`, its devices by name; where they exceed the bus, those that need attention are shown."""
    head = rollout.head
    whole = RolloutView(
        rollout=head.rollout,
        model=head.model,
        version=head.version,
        fleet=head.fleet,
        state=head.state,
        reason=head.reason,
        wave=head.wave,
        waves=head.waves,
        counts=counts(rollout),
        devices=_fitting(list(rollout.turns.values())) if devices else [],
    )
    return whole.model_dump(mode="json")


def event(rollout: Rollout) -> RolloutEvent:
    """A rollout for an announcement."""
    head = rollout.head
    return RolloutEvent.model_validate(head.model_dump() | {"counts": counts(rollout)})


def counts(rollout: Rollout) -> dict[str, int]:
    """Devices by state."""
    return dict(Counter(turn.state for turn in rollout.turns.values()))


def _fitting(turns: list[Turn]) -> list[DeviceProgress]:
    shown: list[DeviceProgress] = []
    room = MAX_ANSWER_BYTES
    for turn in sorted(turns, key=lambda turn: (_URGENCY[turn.state], turn.device)):
        progress = DeviceProgress.model_validate(turn.model_dump())
        room -= len(progress.model_dump_json()) + 1
        if room < 0:
            break
        shown.append(progress)
    return sorted(shown, key=lambda progress: (progress.wave, progress.device))
