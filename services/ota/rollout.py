"""A rollout as a pure state machine: waves of devices, one letter each, success only by the device's own report.

`plan` looks at the state and says what to do next; it looks at levels and not at edges, so a service that was killed
anywhere goes on by asking again. A device is in one of six states:

    pending -> assigned -> succeeded | failed | silent
    silent -> late (succeeded after its deadline) | failed | succeeded (its report had arrived in time after all)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict

from schemas.ids import Digest, Identifier, Ulid, Version
from schemas.ota import Gates, Report
from services.kit.api.ota import DeviceState, RolloutState
from services.kit.errors import RefusedError
from services.ota.settings import CATCH_UP, MAX_APPLIED

SETTLED: frozenset[DeviceState] = frozenset({"succeeded", "failed", "silent", "late"})
_NOT_IN_TIME: frozenset[DeviceState] = frozenset({"failed", "silent", "late"})
_ROUNDING = 1e-9


class Head(BaseModel):
    """A rollout without its devices. `deadlines` has an entry for each wave that was opened."""

    model_config = ConfigDict(frozen=True)

    rollout: Ulid
    model: Identifier
    version: Version
    target: str
    sha256: Digest
    length: int
    seq: int
    fleet: Identifier
    gates: Gates
    waves: int
    deadline_s: float
    max_failed_ratio: float
    state: RolloutState = "running"
    reason: str | None = None
    wave: int = 0
    deadlines: tuple[AwareDatetime, ...] = ()


class Turn(BaseModel):
    """One device of a rollout; `letter` is the id of its assignment, however often that is posted."""

    model_config = ConfigDict(frozen=True)

    device: Identifier
    wave: int
    letter: Ulid
    state: DeviceState = "pending"
    step: str | None = None
    reason: str | None = None
    message: str | None = None
    running_sha256: Digest | None = None
    applied: tuple[Ulid, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """The whole of it."""

    head: Head
    turns: Mapping[str, Turn]

    def wave(self, number: int) -> list[Turn]:
        """Devices of a wave."""
        return [turn for turn in self.turns.values() if turn.wave == number]

    def deadline(self, wave: int) -> datetime | None:
        """When a wave's devices must have answered; None before it is opened."""
        return self.head.deadlines[wave] if wave < len(self.head.deadlines) else None

    def begin_by(self, wave: int) -> datetime | None:
        """When a device of a wave must have begun: those of the last wave may catch up."""
        deadline = self.deadline(wave)
        return deadline + CATCH_UP if deadline is not None and wave == self.head.waves - 1 else deadline


@dataclass(frozen=True, slots=True)
class OpenWave:
    """Let a wave begin."""

    wave: int
    deadline: datetime


@dataclass(frozen=True, slots=True)
class AssignTo:
    """Mark devices as assigned, and write to them."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallSilent:
    """Give up waiting for devices."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop: too many failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Every wave is complete."""


Action = OpenWave | AssignTo | CallSilent | Halt | Finish


def plan(rollout: Rollout, now: datetime, *, judge_silence: bool = True) -> list[Action]:
    """What to do next, to be applied in order and asked again until there is nothing.

    `judge_silence` is False while reports that came in time may still be on their way from IN.
    """
    head = rollout.head
    if head.state != "running":
        return []
    deadline = rollout.deadline(head.wave)
    if deadline is None:
        return [_open(head, head.wave, now)]
    members = rollout.wave(head.wave)
    failed = sum(turn.state in _NOT_IN_TIME for turn in members)
    if failed > head.max_failed_ratio * len(members) + _ROUNDING:
        return [Halt(_why(members, head))]
    if all(turn.state in SETTLED for turn in members):
        return [Finish()] if head.wave == head.waves - 1 else [_open(head, head.wave + 1, now)]
    return _attend(head, members, deadline, now, judge_silence=judge_silence)


def _attend(
    head: Head, members: Sequence[Turn], deadline: datetime, now: datetime, *, judge_silence: bool
) -> list[Action]:
    pending = tuple(turn.device for turn in members if turn.state == "pending")
    if pending and now >= deadline:
        # The service was down for the whole wave: nobody was asked, so nobody was silent.
        return [_open(head, head.wave, now)]
    if pending:
        return [AssignTo(pending)]
    overdue = tuple(turn.device for turn in members if turn.state == "assigned" and now > deadline)
    return [CallSilent(overdue)] if overdue and judge_silence else []


def carry_out(rollout: Rollout, action: Action) -> Rollout:
    """The state after an action."""
    head = rollout.head
    match action:
        case OpenWave(wave, deadline):
            deadlines = (*head.deadlines[:wave], deadline)
            return _with_head(rollout, wave=wave, deadlines=deadlines)
        case AssignTo(devices):
            return _with_turns(rollout, (_moved(rollout, device, "pending", "assigned") for device in devices))
        case CallSilent(devices):
            return _with_turns(rollout, (_moved(rollout, device, "assigned", "silent") for device in devices))
        case Halt(reason):
            return _with_head(rollout, state="halted", reason=reason)
        case Finish():
            return _with_head(rollout, state="done")


def abort(rollout: Rollout, reason: str) -> Rollout:
    """Open no more waves; devices that were asked already may still answer.

    Raises:
        RefusedError: if it is over.
    """
    if rollout.head.state != "running":
        raise RefusedError(f"abort rollout {rollout.head.rollout}: it is {rollout.head.state} already")
    return _with_head(rollout, state="aborted", reason=reason)


def apply_report(rollout: Rollout, device: str, report: Report, letter_id: str, at: datetime) -> Rollout:
    """Take over what a device says; the same object if the report changes nothing.

    The second report with one `letter_id` has no effect. `at` is when the report was stored, to compare with deadlines.
    """
    turn = rollout.turns[device]
    if letter_id in turn.applied or turn.state not in {"assigned", "silent"}:
        return rollout
    state = _verdict(rollout, turn, report, at)
    if state is None:
        if len(turn.applied) >= MAX_APPLIED - 1:
            return rollout
        state = turn.state
    told = {
        "state": state,
        "step": report.step,
        "reason": report.reason,
        "message": report.message,
        "running_sha256": report.running_sha256,
        "applied": (*turn.applied, letter_id),
    }
    if state == "failed" and report.outcome == "ok":
        told |= {"reason": "wrong_digest", "message": f"runs {(report.running_sha256 or 'nothing')[:12]}"}
    return _with_turns(rollout, [turn.model_copy(update=told)])


def split(devices: Sequence[str], waves: Sequence[float], canary: str | None, seed: str) -> dict[str, int]:
    """Wave of each device. Shares are cumulative and rounded up; waves that would add nobody do not exist.

    `seed` shuffles the devices, so that it is not always the same ones that go first.

    Raises:
        RefusedError: if the shares do not rise to 1.0, or the canary is not among the devices.
    """
    if any(not 0 < share <= 1 and not (share >= 2 and share == int(share)) for share in waves):
        raise RefusedError(f"plan waves {list(waves)}: use shares in (0, 1], or from 2 on whole numbers of devices")
    if waves[-1] != 1.0:
        raise RefusedError(f"plan waves {list(waves)}: the last must be 1.0, so that every device is reached")
    if canary is not None and canary not in devices:
        raise RefusedError(f"plan waves: the canary {canary} is not among the {len(devices)} devices")
    order = sorted(devices, key=lambda name: (name != canary, hashlib.sha256(f"{seed}/{name}".encode()).digest()))
    placed: dict[str, int] = {}
    number = 0
    for share in waves:
        upto = math.ceil(share * len(order) - _ROUNDING) if share <= 1 else min(int(share), len(order))
        if upto < len(placed):
            raise RefusedError(f"plan waves {list(waves)}: they must rise")
        fresh = order[len(placed) : upto]
        placed |= dict.fromkeys(fresh, number)
        number += bool(fresh)
    return placed


def _verdict(rollout: Rollout, turn: Turn, report: Report, at: datetime) -> DeviceState | None:
    if report.outcome in {"failed", "refused"}:
        return "failed"
    if (report.step, report.outcome) != ("confirm", "ok"):
        return None
    if report.running_sha256 != rollout.head.sha256:
        return "failed"
    deadline = rollout.deadline(turn.wave)
    return "succeeded" if deadline is not None and at <= deadline else "late"


def _why(members: Sequence[Turn], head: Head) -> str:
    told = [
        f"{t.device} {t.state}" + (f" ({t.reason})" if t.reason else "") for t in members if t.state in _NOT_IN_TIME
    ]
    more = f" and {len(told) - 5} more" if len(told) > 5 else ""
    return (
        f"wave {head.wave + 1}: {len(told)} of {len(members)} devices did not succeed, allowed is a share of "
        f"{head.max_failed_ratio:g}: {', '.join(told[:5])}{more}"
    )


def _open(head: Head, wave: int, now: datetime) -> OpenWave:
    return OpenWave(wave, now + timedelta(seconds=head.deadline_s))


def _moved(rollout: Rollout, device: str, before: DeviceState, after: DeviceState) -> Turn:
    turn = rollout.turns[device]
    return turn.model_copy(update={"state": after}) if turn.state == before else turn


def _with_head(rollout: Rollout, **changes: object) -> Rollout:
    return replace(rollout, head=rollout.head.model_copy(update=changes))


def _with_turns(rollout: Rollout, turns: Iterable[Turn]) -> Rollout:
    return replace(rollout, turns={**rollout.turns, **{turn.device: turn for turn in turns}})
