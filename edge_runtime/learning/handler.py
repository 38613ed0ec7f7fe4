"""Answers round letters: fetch the base, train in the worker, send the update. Imports no numpy: it stays resident."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from pathlib import Path
from typing import Any

from edge_runtime.errors import EdgeError, FetchError
from edge_runtime.learning.answers import Answer, Answers
from edge_runtime.learning.invitation import refuse
from edge_runtime.logs import Log
from edge_runtime.ports import Context
from schemas.aggregator import MAX_INLINE_BYTES, Progress, Round, Update
from schemas.events import DownLetter

FETCH_RETRY_S = 1.0
_MAX_LINE = 512

log = Log(__name__)


class LearningHandler:
    """The letters of kind round. One training at a time; the same letter has one answer."""

    kinds = frozenset({"round"})

    def __init__(self, context: Context) -> None:
        self._context = context
        self._folder = context.folder.root / "learning"
        self._answers = Answers(self._folder)
        self._busy = asyncio.Lock()

    async def resume(self) -> None:
        """Send what a crash kept from the outbox."""
        for answer in self._answers.unsent():
            self._send(answer)

    async def handle(self, letter: DownLetter[Any]) -> None:
        """Answer one invitation, by an update or by the reason why there is none.

        Raises:
            OutboxError: if the answer could not be stored in the outbox; `resume` sends it later.
        """
        invitation: Round = letter.data
        async with self._busy:
            previous = self._answers.get(invitation.job, invitation.round)
            if previous is not None and previous.letter == letter.id:
                if not previous.sent:
                    self._send(previous)
                return
            if previous is not None and invitation.attempt <= previous.update.attempt:
                return
            update = _again(previous, invitation) or await self._answer(invitation)
            answer = Answer(letter=letter.id, update=update)
            # On disk before it is sent, so that a crash in between does not train again.
            self._answers.put(answer)
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        self._context.sender.send("update", answer.update)
        self._answers.put(answer.model_copy(update={"sent": True}))

    async def _answer(self, invitation: Round) -> Update:
        context = self._context
        refusal = refuse(
            invitation, context.settings, context.limits, context.readings.heartbeat(), context.clock.now()
        )
        if refusal is not None:
            return _without(invitation, "refused", refusal.reason, refusal.message)
        try:
            return await self._train(invitation)
        except EdgeError as error:
            log.warning(
                "round.failed", job=invitation.job, round=invitation.round, reason=error.reason, error=str(error)
            )
            return _without(invitation, "failed", error.reason, str(error))

    async def _train(self, invitation: Round) -> Update:
        base = self._folder / f"base-{invitation.base.sha256}.safetensors"
        output = self._folder / f"{invitation.job}.{invitation.round}.vector"
        base.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            await self._fetch(invitation, base)
            self._progress(invitation, 0)
            result = await self._context.heavy_jobs.call(
                "train", self._params(invitation, base, output), timeout_s=self._left_s(invitation)
            )
            self._progress(invitation, _epochs(invitation), result["metrics"].get("loss"))
            return _with_vector(invitation, result, output)
        finally:
            output.unlink(missing_ok=True)
            base.unlink(missing_ok=True)

    async def _fetch(self, invitation: Round, base: Path) -> None:
        """Fetch until the deadline; a link that is down now may come back."""
        while True:
            try:
                async with asyncio.timeout(self._left_s(invitation)):
                    await self._context.parcels.fetch(invitation.base, base)
                return
            except TimeoutError as error:
                raise FetchError(
                    f"fetch base weights {invitation.base.sha256[:12]}: not here by the round's deadline",
                    reason="timeout",
                ) from error
            except FetchError as error:
                if error.reason != "timeout" or self._context.clock.now() >= invitation.deadline:
                    raise
            await asyncio.sleep(FETCH_RETRY_S)

    def _params(self, invitation: Round, base: Path, output: Path) -> dict[str, Any]:
        settings = self._context.settings
        return {
            "estimator": invitation.estimator,
            "installed": dict(settings.estimators),
            "parameters": dict(invitation.parameters),
            "base": str(base),
            "dataset": str(settings.datasets[invitation.dataset]),
            "output": str(output),
            "seed": _seed(invitation, str(self._context.address)),
        }

    def _left_s(self, invitation: Round) -> float:
        return max(0.1, (invitation.deadline - self._context.clock.now()).total_seconds())

    def _progress(self, invitation: Round, epoch: int, loss: float | None = None) -> None:
        progress = Progress(
            job=invitation.job, round=invitation.round, epoch=epoch, epochs=_epochs(invitation), loss=loss
        )
        self._context.sender.publish_state("progress", progress)


def _again(previous: Answer | None, invitation: Round) -> Update | None:
    """What an earlier attempt at this round came to, for this attempt; the same base trains to the same weights."""
    if previous is None or previous.update.outcome != "ok" or previous.update.base != invitation.base.sha256:
        return None
    return previous.update.model_copy(update={"attempt": invitation.attempt})


def _with_vector(invitation: Round, result: dict[str, Any], output: Path) -> Update:
    if result["length"] > MAX_INLINE_BYTES:
        return _without(
            invitation,
            "refused",
            "too_large",
            f"the update has {result['length']} bytes, a letter carries {MAX_INLINE_BYTES}",
        )
    return Update(
        job=invitation.job,
        round=invitation.round,
        attempt=invitation.attempt,
        base=invitation.base.sha256,
        samples=result["samples"],
        sha256=result["sha256"],
        length=result["length"],
        vector=base64.b64encode(output.read_bytes()).decode(),
        metrics=result["metrics"],
    )


def _without(invitation: Round, outcome: str, reason: str, message: str) -> Update:
    return Update.model_validate(
        {
            "job": invitation.job,
            "round": invitation.round,
            "attempt": invitation.attempt,
            "base": invitation.base.sha256,
            "outcome": outcome,
            "reason": reason,
            "message": message[:_MAX_LINE],
        }
    )


def _epochs(invitation: Round) -> int:
    epochs = invitation.parameters.get("epochs", 0)
    return int(epochs) if isinstance(epochs, int | float) else 0


def _seed(invitation: Round, device: str) -> int:
    """Equal for every repetition of this round on this device, so that a repetition trains to the same bits."""
    text = f"{invitation.job}:{invitation.round}:{invitation.base.sha256}:{device}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")
