"""Carries one assignment out: accept, fetch, verify, stage, smoke, commit, confirm. Killed anywhere, it runs again."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from edge_runtime.errors import EdgeError, FetchError, InstallError, WorkerError
from edge_runtime.ota import state as slot
from edge_runtime.ota.checks import Device, Refusal, Release, check_gates, check_install, check_rollback
from edge_runtime.ota.slots import MODEL, SMOKE, Slots, digest_of
from edge_runtime.ports import Context
from edge_runtime.trust.keyring import Keyring
from schemas.aggregator import Artifact
from schemas.depot import Want
from schemas.ota import Assign, Outcome, ReleaseCustom, Report, Smoke, Step

LOOKUP_TIMEOUT_S = 60.0
SMOKE_TIMEOUT_S = 120.0
MAX_WAITING_REPORTS = 3
_STALE_TRUST = frozenset({"unknown_target", "missing_metadata", "expired"})
"""Reasons that newer trust metadata may mend."""
_LOST_WORKER = frozenset({"crashed", "timeout"})


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait between attempts."""

    trust_waits_s: tuple[float, ...] = (1, 2, 4, 8, 15, 30)
    """For trust metadata that an assignment has overtaken; one question each."""
    fetch_retry_s: float = 15.0
    gate_poll_s: float = 15.0
    disk_retry_s: float = 60.0
    """Until a full disk is tried again."""


class RefusedError(InstallError):
    """The assignment must not be carried out."""


class Installation:
    """One run over the open order of a model.

    Args:
        slots: of the device.
        model: whose `state.json` holds the order.
    """

    def __init__(self, context: Context, slots: Slots, model: str, pace: Pace) -> None:
        self._context = context
        self._slots = slots
        self._model = model
        self._pace = pace
        self._step: Step = "accept"
        self._smoke: Smoke | None = None
        self._staging = context.folder.staging / f"model-{model}"

    async def run(self) -> None:
        """Bring the order to its verdict and report it; returns at once if there is nothing to do.

        Raises:
            OutboxError: if the verdict could not be stored; run it again to report it.
        """
        state = self._load()
        order = state.open_order
        if order is not None:
            state = await self._decide(order)
            shutil.rmtree(self._staging, ignore_errors=True)
        deliver(self._context, self._slots, state)
        self._slots.prune(state)

    async def _decide(self, order: slot.Order) -> slot.SlotState:
        try:
            p50_ms = await self._carry_out(order)
        except (EdgeError, OSError) as error:
            reason = error.reason if isinstance(error, EdgeError) else "disk"
            outcome: Outcome = "refused" if isinstance(error, RefusedError) else "failed"
            state = slot.give_up(self._load())
            return self._close(state, self._verdict(order, state, outcome, reason, str(error)))
        state = self._load()
        if order.assign.action != "remove":
            state = slot.confirm(state, p50_ms)
        return self._close(state, self._verdict(order, state, "ok"))

    async def _carry_out(self, order: slot.Order) -> float | None:
        assign = order.assign
        if assign.action == "remove":
            self._accept(order)
            self._step = "commit"
            self._slots.store(slot.remove(self._load()))
            self._step = "confirm"
            return None
        if assign.action == "rollback":
            await self._check_rollback(order)
        else:
            await self._install(order, await self._check_install(order))
        if self._load().trial is not None:
            self._step = "commit"
            self._slots.store(slot.commit(self._load(), self._context.clock.now().date()))
        return await self._confirm(assign)

    async def _check_install(self, order: slot.Order) -> Release:
        release = await self._released(order.assign)
        state = self._slots.store(slot.learn(self._load(), release.floor, release.revoked))
        _refuse(order.assign, check_install(order.assign, release, self._device(), state, order.began))
        self._accept(order)
        return release

    async def _check_rollback(self, order: slot.Order) -> None:
        assign = order.assign
        try:
            release = await self._released(assign)
            self._slots.store(slot.learn(self._load(), release.floor, release.revoked))
        except WorkerError as error:
            # Going back must work with old metadata; the versions revoked at the last look still count.
            if error.reason not in _STALE_TRUST:
                raise
        state = self._load()
        if assign.sha256 not in {state.trial, state.digest}:
            staged = self._slots.release(self._model, assign.sha256)
            _refuse(assign, check_rollback(assign, staged, self._device(), state, order.began))
            state = self._slots.store(slot.try_out(state, assign.sha256))
        self._accept(order)

    async def _install(self, order: slot.Order, release: Release) -> None:
        assign = order.assign
        if self._load().digest == assign.sha256:
            return
        if self._load().trial != assign.sha256:
            await self._pass_gates(order)
        if not self._slots.holds(self._model, assign.sha256):
            await self._fetch(assign, release.custom)
        self._step = "smoke"
        self._slots.store(slot.try_out(self._load(), assign.sha256))
        await self._try_smoke(assign, release.custom)

    async def _fetch(self, assign: Assign, release: ReleaseCustom) -> None:
        staging = self._staging
        self._step = "fetch"
        model = Artifact(sha256=assign.sha256, length=assign.length, recipe=release.recipe, pieces=release.pieces)
        wanted = {MODEL: model}
        if (spec := release.smoke) is not None:
            wanted[SMOKE] = Artifact(sha256=spec.sha256, length=spec.length, recipe=spec.recipe, pieces=spec.pieces)
        staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, artifact in wanted.items():
            done = self._slots.file(self._model, assign.sha256, name)
            if not done.exists():
                await self._fetch_until(assign.deadline, artifact)
        self._step = "verify"
        for artifact in wanted.values():
            path = staging / artifact.sha256
            if path.exists() and await asyncio.to_thread(digest_of, path) != (artifact.sha256, artifact.length):
                path.unlink()
                raise InstallError(
                    f"verify {self._model} {assign.version}: what arrived is not {artifact.sha256[:12]}",
                    reason="wrong_digest",
                )
        self._step = "stage"
        smoke = staging / spec.sha256 if spec is not None else None
        self._slots.stage(self._model, assign.sha256, release, staging / assign.sha256, smoke)

    async def _fetch_until(self, deadline: datetime, artifact: Artifact) -> None:
        while True:
            try:
                await self._context.parcels.fetch(artifact, self._staging / artifact.sha256)
                return
            except FetchError as error:
                if error.reason != "timeout" or self._context.clock.now() >= deadline:
                    raise
            await asyncio.sleep(self._pace.fetch_retry_s)

    async def _try_smoke(self, assign: Assign, release: ReleaseCustom) -> None:
        spec = release.smoke
        params: dict[str, Any] = {
            "model": str(self._slots.file(self._model, assign.sha256)),
            "sha256": assign.sha256,
            "inputs": str(self._slots.file(self._model, assign.sha256, SMOKE)) if spec else None,
            "inputs_sha256": spec.sha256 if spec else None,
            "tolerance": spec.tolerance if spec else None,
        }
        try:
            self._smoke = Smoke.model_validate(await self._load_on_trial("smoke", params))
        except WorkerError as error:
            if error.reason == "wrong_digest":
                self._slots.drop(self._model, assign.sha256)
            raise
        if not self._smoke.passed:
            raise InstallError(
                f"smoke test of {self._model} {assign.version}: outputs differ from the signed ones by "
                f"{self._smoke.max_error}, allowed are {spec.tolerance if spec else 0:g}",
                reason="smoke_mismatch",
            )

    async def _confirm(self, assign: Assign) -> float | None:
        self._step = "confirm"
        params = {"slots": str(self._slots.root), "model": self._model, "probe": True}
        running = await self._load_on_trial("infer", params)
        if running["sha256"] != assign.sha256:
            raise InstallError(
                f"confirm {self._model} {assign.version}: {running['sha256'][:12]} runs instead", reason="not_running"
            )
        p50_ms: float | None = running["p50_ms"]
        return p50_ms

    async def _load_on_trial(self, job: str, params: dict[str, Any]) -> dict[str, Any]:
        while True:
            if self._load().trial is not None:
                self._slots.store(slot.spend(self._load()))
            try:
                return await self._context.jobs.call(job, params, timeout_s=SMOKE_TIMEOUT_S)
            except WorkerError as error:
                if error.reason not in _LOST_WORKER or self._load().tries_left == 0:
                    raise

    async def _released(self, assign: Assign) -> Release:
        waits = iter(self._pace.trust_waits_s)
        params = {"folder": str(self._context.folder.trust), "target": assign.target}
        while True:
            moment = {"now": self._context.clock.now().isoformat()}
            try:
                found = await self._context.jobs.call("trust.target", params | moment, timeout_s=LOOKUP_TIMEOUT_S)
                break
            except WorkerError as error:
                pause = next(waits, None)
                if error.reason not in _STALE_TRUST:
                    raise
                if pause is None:
                    if assign.action == "rollback":
                        raise
                    raise RefusedError(str(error), reason=error.reason) from error
            # The assignment may have overtaken the metadata that it refers to.
            held = Keyring(self._context.folder.trust).state([assign.model])
            self._context.sender.send_parcel("want", Want(trust=held).write())
            await asyncio.sleep(pause)
        try:
            custom = ReleaseCustom.model_validate(found["custom"])
        except ValidationError as error:
            told = f"read the release {assign.target}: its signed facts do not fit the contract ({error.error_count()})"
            raise RefusedError(told, reason="bad_metadata") from error
        return Release(found["sha256"], found["length"], custom, found["floor"], tuple(found["revoked"]))

    async def _pass_gates(self, order: slot.Order) -> None:
        told: list[str] = []
        readings = self._context.readings
        while True:
            held = check_gates(order.assign.gates, readings.heartbeat(), readings.capabilities())
            if held is None:
                return
            if self._context.clock.now() >= order.assign.deadline:
                raise InstallError(f"wait for {held.message}: not before the deadline", reason=held.reason)
            if held.reason not in told[-1:] and len(told) < MAX_WAITING_REPORTS:
                told.append(held.reason)
                waiting = self._verdict(order, self._load(), "waiting", held.reason, held.message)
                self._context.sender.send("report", waiting)
            await asyncio.sleep(self._pace.gate_poll_s)

    def _accept(self, order: slot.Order) -> None:
        state = self._load()
        if state.order is not None and not state.order.accepted:
            self._context.sender.send("report", self._verdict(order, state, "ok"), letter_id=order.accept_id)
            self._slots.store(slot.accept(state))

    def _device(self) -> Device:
        settings = self._context.settings
        limit = settings.limits.max_activations_per_day
        return Device(self._context.address, settings.stage, self._context.readings.capabilities(), limit)

    def _verdict(
        self, order: slot.Order, state: slot.SlotState, outcome: Outcome, reason: str | None = None, message: str = ""
    ) -> Report:
        took = (self._context.clock.now() - order.began).total_seconds()
        return make_report(order, self._step, outcome, state, reason=reason, message=message).model_copy(
            update={"smoke": self._smoke, "took_s": max(0.0, took)}
        )

    def _close(self, state: slot.SlotState, verdict: Report) -> slot.SlotState:
        return self._slots.store(slot.close(state, verdict))

    def _load(self) -> slot.SlotState:
        return self._slots.load(self._model)


def make_report(
    order: slot.Order,
    step: Step,
    outcome: Outcome,
    state: slot.SlotState,
    *,
    reason: str | None = None,
    message: str = "",
) -> Report:
    """What the device says about an order; names what is served now."""
    return Report(
        rollout=order.assign.rollout,
        model=order.assign.model,
        step=step,
        outcome=outcome,
        reason=reason,
        message=message[:512] or None,
        running_sha256=state.digest,
        revision=order.revision,
        took_s=0.0,
    )


def deliver(context: Context, slots: Slots, state: slot.SlotState) -> None:
    """Put the verdict of a closed order into the outbox, unless it is there."""
    order = state.order
    if order is not None and order.verdict is not None and not order.reported:
        context.sender.send("report", order.verdict, letter_id=order.verdict_id)
        slots.store(slot.report(state))


def _refuse(assign: Assign, refusal: Refusal | None) -> None:
    if refusal is not None:
        raise RefusedError(f"{assign.action} {assign.model} {assign.version}: {refusal.message}", reason=refusal.reason)
