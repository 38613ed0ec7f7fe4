"""Rejected letters, taken once more when what was wrong is mended (decision 0017).

A letter whose turn it still is goes into IN as if it had just come. One whose number was spent, or that a service
refused after it was in IN, is appended again out of its place with a message id of its own: its envelope and its id are
the same, and by the id it has one effect however often it is handed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError as NoMessageError
from ulid import ULID

from schemas.errors import ContractError
from schemas.topics import (
    UP_LETTERS,
    Channel,
    Topic,
    in_of,
    in_subject,
    parse_in,
    parse_subject,
    refused_subject,
    reject_subject,
)
from services.courier import metrics
from services.courier.up.chain import MESSAGE_ID, Entry
from services.courier.up.errands import Desk, Errands
from services.courier.up.ordering import Verdict
from services.courier.up.verifying import Opened
from services.kit import rpc
from services.kit.api.courier import Replayed, ReplayRequest
from services.kit.bus import Bus
from services.kit.errors import PlatformError
from services.kit.mailbox import LETTER_ID
from services.kit.puller import scan
from services.kit.rejects import SUBJECT
from services.kit.streams import IN, REJECTS

log = structlog.get_logger()

OWN = reject_subject("courier")


@dataclass(frozen=True, slots=True)
class _Reject:
    """One message of REJECTS that was a letter; `read`: a service refused it after IN held it."""

    sequence: int
    topic: Topic
    raw: bytes
    read: bool


class ReplayVerb:
    """Handler of `replay`."""

    def __init__(self, bus: Bus, errands: Errands) -> None:
        self._bus = bus
        self._errands = errands

    async def serve(self) -> None:
        """Answer from now on."""
        await rpc.serve_from_now(self._bus, "courier", "replay", ReplayRequest, self.replay)

    async def replay(self, request: ReplayRequest) -> list[dict[str, Any]]:
        """One after the other, in the order asked."""
        answers = [await self._one(sequence) for sequence in request.sequences]
        for answer in answers:
            metrics.REPLAYED.labels(answer.outcome).inc()
        return [answer.model_dump(mode="json", exclude_none=True) for answer in answers]

    async def _one(self, sequence: int) -> Replayed:
        try:
            reject = await self._fetch(sequence)
            outcome, letter = await self._errands.ask(lambda desk: _take(desk, reject))
            if outcome == "known" and await self._wants_handing(reject, letter):
                await self._errands.ask(lambda desk: _hand(desk, letter))
                outcome = "handed"
        except ContractError as error:
            return Replayed(sequence=sequence, outcome="refused", reason=error.reason, message=str(error))
        except PlatformError as error:
            return Replayed(sequence=sequence, outcome="refused", reason=error.code, message=str(error))
        log.info("letter.replayed", sequence=sequence, letter=letter.letter_id, outcome=outcome)
        return Replayed(sequence=sequence, outcome=outcome)

    async def _fetch(self, sequence: int) -> _Reject:
        try:
            found = await self._bus.js.get_msg(REJECTS.name, seq=sequence, direct=True)
        except NoMessageError as error:
            what = f"replay reject {sequence}: there is none of this number; see `causeway letters rejected`"
            raise PlatformError(what, code="not_found") from error
        subject = (found.headers or {}).get(SUBJECT, "")
        return _Reject(sequence, _topic(sequence, subject), found.data or b"", found.subject != OWN)

    async def _wants_handing(self, reject: _Reject, letter: Opened) -> bool:
        """Whether IN has a place for the letter but no service was ever given it, or the one that was refused it."""
        if reject.read:
            return True
        name = letter.slip.key.message_id(letter.slip.sequence)
        spent = False
        async for message in scan(self._bus, IN.name, headers_only=True, subject=in_of(letter.address)):
            if not _names(message, letter.letter_id, name):
                continue
            if message.subject != refused_subject(letter.address):
                return False
            spent = True
        return spent


async def _take(desk: Desk, reject: _Reject) -> tuple[Any, Opened]:
    letter = desk.open(reject.raw, reject.topic.subject)
    if letter.refusal is not None:
        raise letter.refusal
    verdict = await desk.admit(letter)
    if verdict is None:
        raise PlatformError(f"replay reject {reject.sequence}: its device may have two bodies", code="suspended")
    return {Verdict.ADMIT: "stored", Verdict.DUPLICATE: "known", Verdict.EARLY: "early"}[verdict], letter


async def _hand(desk: Desk, letter: Opened) -> None:
    subject = in_subject(letter.kind, letter.address)
    entry = Entry(subject, f"replay:{ULID()}", letter.envelope, letter_id=letter.letter_id, way="replayed")
    await desk.append([entry])


def _topic(sequence: int, subject: str) -> Topic:
    try:
        kind, address = parse_in(subject)
        return Topic(address, Channel.LETTER, kind)
    except ContractError:
        pass
    topic = parse_subject(subject)
    if topic.channel is not Channel.LETTER or topic.kind not in UP_LETTERS:
        raise PlatformError(
            f"replay reject {sequence}: it is a message {topic.kind}, not a letter; its device repeats it by itself",
            code="not_a_letter",
        )
    return topic


def _names(message: Msg, letter_id: str, name: str) -> bool:
    headers = message.headers or {}
    return headers.get(LETTER_ID) == letter_id or headers.get(MESSAGE_ID) == name
