"""Appending to IN such that no other courier's letter can come between (protocols, section 0, "One active courier").

Each message names the id of the one before it. A fence, which names none, breaks the chain of every predecessor that still
believes to be active; after a replay up to the own fence this courier knows IN exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nats.js.api import Header
from ulid import ULID

from schemas.topics import fence_subject
from services.courier import metrics
from services.courier.pipeline import Pipeline, Request, read_answer

MESSAGE_ID = Header.MSG_ID.value
EXPECTED = Header.EXPECTED_LAST_MSG_ID.value
REASON = "Causeway-Refused"
"""Header of a letter whose number is spent without being handed on."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A letter on its way into IN."""

    subject: str
    message_id: str
    envelope: bytes
    reason: str | None = None


class Chain:
    """The end of IN as this courier knows it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.message_id = ""
        self.sequence = 0

    async def fence(self) -> None:
        """Break every other chain and begin a new one.

        Raises:
            PipelineError: if IN does not answer.
        """
        name = f"fence:{ULID()}"
        [answer] = await self._pipeline.ask([Request(fence_subject(), b"", {MESSAGE_ID: name})])
        self.sequence = int(read_answer(answer)["seq"])
        self.message_id = name
        metrics.FENCES.inc()

    async def append(self, entries: Sequence[Entry]) -> list[int]:
        """Store letters in their order.

        Returns:
            IN's sequence of each.

        Raises:
            PipelineError: if any was refused or not acknowledged; which ones IN holds is then known by replay only.
        """
        requests = []
        last = self.message_id
        for entry in entries:
            headers = {MESSAGE_ID: entry.message_id, EXPECTED: last}
            if entry.reason is not None:
                headers[REASON] = entry.reason
            requests.append(Request(entry.subject, entry.envelope, headers))
            last = entry.message_id
        sequences = [int(read_answer(answer)["seq"]) for answer in await self._pipeline.ask(requests)]
        if sequences:
            self.message_id, self.sequence = last, sequences[-1]
        return sequences
