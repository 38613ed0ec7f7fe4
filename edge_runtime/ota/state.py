"""What `state.json` of a model says, and every step that it may take. Pure.

A model on trial is loaded at most `TRIES` times: each load is spent and stored before it begins. Until `confirm` the
trial is marked, also after `commit`, so that a device that dies in between goes back to what ran before.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import AwareDatetime, Field

from edge_runtime.errors import InstallError
from schemas.events import Message
from schemas.ids import Count, Digest, Identifier, Ulid, Version
from schemas.ota import Assign, Report

TRIES = 4
"""Loads of a model on trial: its smoke test, its confirmation, and each once more after a crash."""


class Order(Message):
    """An assignment in hand.

    Attributes:
        accept_id: of the letter that reports the acceptance, chosen beforehand, so that a crash makes no second one.
        verdict_id: the same for the verdict.
        accepted: `accept` was reported.
        verdict: what came of it; None while it is carried out.
        reported: the verdict is in the outbox.
    """

    letter: Ulid
    assign: Assign
    generation: Count
    revision: Count
    began: AwareDatetime
    accept_id: Ulid
    verdict_id: Ulid
    accepted: bool = False
    verdict: Report | None = None
    reported: bool = False


class SlotState(Message):
    """Everything that a device knows of one model.

    Attributes:
        generation: with `revision`, of the newest assignment taken.
        slot: the model.
        digest: what is served; None for nothing.
        previous: what was served before, kept for a rollback.
        trial: what is being tried; equals `digest` from commit to confirm.
        tries_left: loads that the trial has left.
        serving: revision of the assignment that `digest` came with.
        floor: highest `seq` floor ever seen in signed metadata.
        revoked: versions that the last look at signed metadata named.
        day: of the last activation.
        activations: on that day.
    """

    v: int = 1
    generation: Count = 0
    revision: Count = 0
    slot: Identifier
    digest: Digest | None = None
    previous: Digest | None = None
    trial: Digest | None = None
    tries_left: Annotated[int, Field(ge=0, le=TRIES)] = 0
    serving: Count = 0
    floor: Count = 0
    revoked: tuple[Version, ...] = ()
    day: date | None = None
    activations: Count = 0
    p50_ms: float | None = None
    order: Order | None = None

    @property
    def open_order(self) -> Order | None:
        """The order that still has to be carried out."""
        return self.order if self.order is not None and self.order.verdict is None else None

    @property
    def kept(self) -> set[str]:
        """Digests whose folders are still needed."""
        return {digest for digest in (self.digest, self.previous, self.trial) if digest is not None}


def take(state: SlotState, order: Order) -> SlotState:
    """Begin a newer assignment; what was on trial for an older one is given up.

    Raises:
        InstallError: `replayed` if it is not newer.
    """
    if (order.generation, order.revision) <= (state.generation, state.revision):
        raise InstallError(
            f"take assignment of {state.slot}: revision {order.generation}.{order.revision} is not newer than "
            f"{state.generation}.{state.revision}",
            reason="replayed",
        )
    newer = {"generation": order.generation, "revision": order.revision, "order": order}
    return give_up(state).model_copy(update=newer)


def learn(state: SlotState, floor: int, revoked: tuple[str, ...]) -> SlotState:
    """Remember what the signed metadata said; a floor never sinks."""
    return state.model_copy(update={"floor": max(floor, state.floor), "revoked": revoked})


def accept(state: SlotState) -> SlotState:
    """Note that the acceptance was reported."""
    return _with_order(state, accepted=True)


def try_out(state: SlotState, digest: str) -> SlotState:
    """Put a staged digest on trial; one that is on trial already keeps the tries that it has left."""
    if state.trial == digest:
        return state
    return state.model_copy(update={"trial": digest, "tries_left": TRIES})


def spend(state: SlotState) -> SlotState:
    """Take one try; to be stored before the trial is loaded.

    Raises:
        InstallError: `tries_exhausted` if none is left.
    """
    if state.tries_left == 0:
        raise InstallError(
            f"try {state.slot} {(state.trial or '')[:12]}: it was loaded {TRIES} times and never confirmed; "
            "it crashes the device or its worker",
            reason="tries_exhausted",
        )
    return state.model_copy(update={"tries_left": state.tries_left - 1})


def commit(state: SlotState, today: date) -> SlotState:
    """Serve what is on trial; counted against the day's activations."""
    if state.trial is None or state.trial == state.digest:
        return state
    count = state.activations + 1 if state.day == today else 1
    served = {"digest": state.trial, "previous": state.digest, "day": today, "activations": count}
    return state.model_copy(update=served)


def confirm(state: SlotState, p50_ms: float | None) -> SlotState:
    """End the trial: what is served has proven itself."""
    ended = {"trial": None, "tries_left": 0, "serving": state.revision, "p50_ms": p50_ms}
    return state.model_copy(update=ended)


def give_up(state: SlotState) -> SlotState:
    """End the trial without success; after a commit, serve again what was served before. Not counted."""
    if state.trial is None:
        return state
    ended: dict[str, object] = {"trial": None, "tries_left": 0}
    if state.digest == state.trial:
        ended |= {"digest": state.previous, "previous": None}
    return state.model_copy(update=ended)


def remove(state: SlotState) -> SlotState:
    """Serve nothing."""
    gone = {"digest": None, "previous": None, "trial": None, "tries_left": 0, "p50_ms": None}
    return state.model_copy(update=gone)


def close(state: SlotState, verdict: Report) -> SlotState:
    """Write down what came of the order."""
    return _with_order(state, verdict=verdict)


def report(state: SlotState) -> SlotState:
    """Note that the verdict is in the outbox."""
    return _with_order(state, reported=True)


def activations_on(state: SlotState, today: date) -> int:
    """How often the served digest changed today."""
    return state.activations if state.day == today else 0


def _with_order(state: SlotState, **changes: object) -> SlotState:
    assert state.order is not None
    return state.model_copy(update={"order": state.order.model_copy(update=changes)})
