"""Appending to a stream such that no other courier can write in between.

Each message names the id of the one before it. A fence, which names none, breaks the chain of every predecessor that
still believes to be active; after a replay up to the own fence this courier knows the stream exactly. IN is written so,
and the bucket of marks, since a paused predecessor's stale marks would be as harmful as its letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nats.aio.msg import Msg
from nats.js.api import Header
from ulid import ULID

from services.courier import metrics
from services.kit.mailbox import LETTER_ID
from services.kit.pipeline import Pipeline, PipelineError, Request, read_answer

MESSAGE_ID = Header.MSG_ID.value
EXPECTED = Header.EXPECTED_LAST_MSG_ID.value
REASON = "Causeway-Refused"
"""Header of a letter whose number is spent without being handed on."""
WAY = "Causeway-Way"
"""Header of a letter that did not come straight from its device: `carried` or `replayed`."""
Way = Literal["carried", "replayed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A message on its way into the stream."""

    subject: str
    message_id: str
    body: bytes
    reason: str | None = None
    letter_id: str | None = None
    way: Way | None = None

    def headers(self, last: str) -> dict[str, str]:
        """What it is stored with, behind the message `last`."""
        named = {REASON: self.reason, LETTER_ID: self.letter_id, WAY: self.way}
        return {MESSAGE_ID: self.message_id, EXPECTED: last} | {k: v for k, v in named.items() if v is not None}


class Chain:
    """The end of a stream as this courier knows it."""

    def __init__(self, pipeline: Pipeline, fence_subject: str) -> None:
        self._pipeline = pipeline
        self._fence_subject = fence_subject
        self.message_id = ""
        self.sequence = 0

    async def fence(self) -> None:
        """Break every other chain and begin a new one.

        Raises:
            PipelineError: if the stream does not answer.
        """
        name = f"fence:{ULID()}"
        [answer] = await self._pipeline.ask([Request(self._fence_subject, b"", {MESSAGE_ID: name})])
        self.sequence = int(read_answer(answer)["seq"])
        self.message_id = name
        metrics.FENCES.inc()

    async def append(self, entries: Sequence[Entry]) -> list[int]:
        """Store messages in their order.

        Returns:
            The stream's sequence of each.

        Raises:
            PipelineError: if any was refused or not acknowledged; only a replay tells which ones the stream holds.
        """
        requests = []
        last = self.message_id
        for entry in entries:
            requests.append(Request(entry.subject, entry.body, entry.headers(last)))
            last = entry.message_id
        sequences = [_stored(answer) for answer in await self._pipeline.ask(requests)]
        if sequences:
            self.message_id, self.sequence = last, sequences[-1]
        return sequences


def _stored(message: Msg) -> int:
    answer = read_answer(message)
    if answer.get("duplicate"):
        # The server remembers the id of a message that it does not hold, else a replay would have shown it.
        raise PipelineError(f"message {answer['seq']} was not stored: its id was used a moment ago and it was deleted")
    return int(answer["seq"])
