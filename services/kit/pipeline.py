"""Many requests at once over one connection, each batch with a limit on its wait.

nats-py's `publish_async` never resolves its future on a JetStream error, and a request at a time waits for as many
round trips as there are messages.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from services.kit.bus import Bus
from services.kit.errors import PlatformError

NO_RESPONDERS = "503"


class PipelineError(PlatformError):
    """A batch was not answered whole, or a part of it was refused; what became of the rest is not known.

    Attributes:
        err_code: JetStream's own number, None if there was no answer.
    """

    code = "not_stored"

    def __init__(self, message: str, *, err_code: int | None = None) -> None:
        super().__init__(message)
        self.err_code = err_code


@dataclass(frozen=True, slots=True)
class Request:
    """One message that wants an answer."""

    subject: str
    payload: bytes
    headers: Mapping[str, str] | None = None


@dataclass(slots=True)
class _Batch:
    missing: int
    done: asyncio.Future[None]
    answers: dict[int, Msg] = field(default_factory=dict)


class Pipeline:
    """Sends batches and collects their answers over an inbox of its own."""

    def __init__(self, bus: Bus, timeout_s: float) -> None:
        self._bus = bus
        self._timeout_s = timeout_s
        self._inbox = ""
        self._batches: dict[str, _Batch] = {}
        self._count = 0

    async def open(self) -> None:
        """Subscribe to the inbox; nats-py renews it on reconnect."""
        nc = self._bus.nc
        self._inbox = nc.new_inbox()
        await nc.subscribe(f"{self._inbox}.*.*", cb=self._answered)
        self._bus.on_disconnect(self._give_up)

    async def ask(self, requests: Sequence[Request]) -> list[Msg]:
        """Send all, in order, and return their answers in the same order.

        Raises:
            PipelineError: if not all were answered in time, the connection is lost or closed, or its buffer is full.
        """
        if not requests:
            return []
        self._count += 1
        name = str(self._count)
        batch = _Batch(len(requests), asyncio.get_running_loop().create_future())
        self._batches[name] = batch
        try:
            async with asyncio.timeout(self._timeout_s):
                for index, request in enumerate(requests):
                    if batch.done.done() or not self._bus.nc.is_connected:
                        # nats-py would keep it, and send it at the reconnect although it had been given up.
                        break
                    headers = dict(request.headers) if request.headers else None
                    reply = f"{self._inbox}.{name}.{index}"
                    await self._bus.nc.publish(request.subject, request.payload, reply=reply, headers=headers)
                else:
                    await batch.done
        except (TimeoutError, NatsError) as error:
            raise PipelineError(
                f"{batch.missing} of {len(requests)} requests to {requests[0].subject} were not answered within "
                f"{self._timeout_s} s ({error!r}): check that nats-server runs and has room"
            ) from error
        finally:
            del self._batches[name]
        if batch.missing:
            raise PipelineError(
                f"{batch.missing} of {len(requests)} requests to {requests[0].subject} were not answered before the "
                "connection was lost: they are tried again when it is back"
            )
        return [batch.answers[index] for index in range(len(requests))]

    def _give_up(self) -> None:
        # A server that comes back does not answer what it was asked before.
        for batch in self._batches.values():
            if not batch.done.done():
                batch.done.set_result(None)

    async def _answered(self, message: Msg) -> None:
        _, name, index = message.subject.rsplit(".", 2)
        batch = self._batches.get(name)
        if batch is None or int(index) in batch.answers:
            return
        batch.answers[int(index)] = message
        batch.missing -= 1
        if not batch.missing and not batch.done.done():
            batch.done.set_result(None)


def read_answer(message: Msg) -> dict[str, Any]:
    """JetStream's answer.

    Raises:
        PipelineError: with its error.
    """
    if message.headers and message.headers.get("Status") == NO_RESPONDERS:
        raise PipelineError("JetStream does not answer: the stream is missing or not ready yet")
    answer: dict[str, Any] = json.loads(message.data)
    if "error" in answer:
        error = answer["error"]
        raise PipelineError(f"JetStream refused: {error.get('description')}", err_code=error.get("err_code"))
    return answer
