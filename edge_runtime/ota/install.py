"""Acts on assignments: takes each durably, carries it out in the background, lets a newer one replace an older one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections import defaultdict
from typing import Any

from ulid import ULID

from edge_runtime.errors import EdgeError, InstallError, OutboxError
from edge_runtime.ota import state as slot
from edge_runtime.ota.installation import Installation, Pace, deliver, make_report
from edge_runtime.ota.slots import Slots
from edge_runtime.ports import Context
from schemas.events import DownLetter
from schemas.ota import Assign
from schemas.registry import EventReport, ServedModel

log = logging.getLogger(__name__)

MAX_SERVED = 16
"""As many as a heartbeat holds."""
INFER_TIMEOUT_S = 60.0
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class OtaHandler:
    """Handler of `assign` letters.

    `handle` returns once the assignment is on disk; from then on `resume` carries it on after a crash. So a slow
    download never keeps a newer assignment of the same model waiting.
    """

    kinds = frozenset({"assign"})

    def __init__(self, context: Context, pace: Pace | None = None) -> None:
        self._context = context
        self._pace = pace or Pace()
        self._slots = Slots(context.folder.slots)
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._seen: dict[str, tuple[float | None, int]] = {}

    async def handle(self, letter: DownLetter[Assign]) -> None:
        """Take an assignment; a repetition of the letter in hand only makes sure that it is carried out."""
        model = letter.data.model
        order = slot.Order(
            letter=letter.id,
            assign=letter.data,
            generation=letter.generation,
            revision=letter.revision,
            began=self._context.clock.now(),
            accept_id=str(ULID()),
            verdict_id=str(ULID()),
        )
        async with self._locks[model]:
            state = self._load(model)
            if state.order is None or state.order.letter != letter.id:
                try:
                    slot.take(state, order)
                except InstallError as error:
                    told = make_report(order, "accept", "refused", state, reason=error.reason, message=str(error))
                    self._context.sender.send("report", told)
                    return
                await self._stop(model)
                self._slots.store(slot.take(self._supersede(self._load(model), order), order))
            self._start(model)

    async def resume(self) -> None:
        """Carry on what was interrupted, and report what was not reported; in the background."""
        for model in self._slots.models():
            async with self._locks[model]:
                self._start(model)

    async def settled(self) -> None:
        """Wait until nothing is being carried out."""
        while running := [run for run in self._runs.values() if not run.done()]:
            await asyncio.wait(running)

    async def close(self) -> None:
        """Stop; what is open is carried on by `resume` at the next start."""
        for model in list(self._runs):
            await self._stop(model)

    def served(self) -> list[ServedModel]:
        """What answers on this device, for the heartbeat."""
        found = []
        for model in self._slots.models():
            state = self._load(model)
            if state.digest is not None:
                p50_ms, errors = self._seen.get(model, (None, 0))
                known = state.p50_ms if p50_ms is None else p50_ms
                found.append(
                    ServedModel(name=model, digest=state.digest, revision=state.serving, p50_ms=known, errors=errors)
                )
        return found[:MAX_SERVED]

    async def infer(self, model: str, inputs: Any, *, timeout_s: float = INFER_TIMEOUT_S) -> dict[str, Any]:
        """Run the served version of a model in the worker; see `edge_runtime.inference.run`.

        Raises:
            WorkerError: `not_installed`, `bad_input`, `inference_failed`, `crashed` or `timeout`.
        """
        params = {"slots": str(self._slots.root), "model": model, "inputs": inputs}
        try:
            answer = await self._context.jobs.call("infer", params, timeout_s=timeout_s)
        except EdgeError:
            p50_ms, errors = self._seen.get(model, (None, 0))
            self._seen[model] = (p50_ms, errors + 1)
            raise
        errors = self._seen.get(model, (None, 0))[1]
        self._seen[model] = (answer["p50_ms"], errors)
        return answer

    def _start(self, model: str) -> None:
        run = self._runs.get(model)
        if run is None or run.done():
            self._runs[model] = asyncio.create_task(self._run(model), name=f"install-{model}")

    async def _stop(self, model: str) -> None:
        run = self._runs.pop(model, None)
        if run is not None:
            run.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await run

    async def _run(self, model: str) -> None:
        try:
            self._load(model)
            await self._carry_out(model)
        except Exception as error:
            # The order stays open on disk, so the next start tries again; the platform counts it as silent meanwhile.
            log.exception("installation of %s stopped", model)
            self._tell("ota.stopped", "crashed", f"installation of {model}: {type(error).__name__}: {error}", model)

    async def _carry_out(self, model: str) -> None:
        while True:
            try:
                await Installation(self._context, self._slots, model, self._pace).run()
                return
            except (OutboxError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_ROOM:
                    raise
                # What was done stands in the slot; it is carried on and reported once there is room.
                log.error("installation of %s waits %g s: %s", model, self._pace.disk_retry_s, error)
            await asyncio.sleep(self._pace.disk_retry_s)

    def _supersede(self, state: slot.SlotState, newer: slot.Order) -> slot.SlotState:
        order = state.open_order
        if order is not None:
            message = f"replaced by revision {newer.revision} before it was done"
            state = slot.give_up(state)
            told = make_report(order, "accept", "failed", state, reason="superseded", message=message)
            state = self._slots.store(slot.close(state, told))
        deliver(self._context, self._slots, state)
        return state

    def _load(self, model: str) -> slot.SlotState:
        try:
            return self._slots.load(model)
        except InstallError as error:
            aside = self._slots.set_aside(model)
            log.error("%s; set aside as %s, the model must be assigned again", error, aside)
            self._tell("slot.damaged", "damaged_state", str(error), model)
            return self._slots.load(model)

    def _tell(self, name: str, reason: str, message: str, model: str) -> None:
        told = EventReport(name=name, severity="high", reason=reason, message=message[:512], details={"model": model})
        try:
            self._context.sender.send("event", told)
        except OutboxError as failure:
            log.error("event %s of %s is not reported: %s", name, model, failure)
