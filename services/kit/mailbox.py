"""How a service writes to a device: a signed letter into the device's mailbox, where the courier finds it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from nats.js import JetStreamContext

from schemas.envelope import Signer
from schemas.events import Message
from schemas.ids import Address
from schemas.letters import write_down
from schemas.topics import out_subject

LETTER_ID = "Causeway-Letter-Id"
EXPIRES = "Causeway-Expires"
"""Header: seconds since the epoch, after which the courier drops the letter."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A letter to one device, before it is signed.

    Attributes:
        letter_id: ULID; the same for every repetition of the same letter, so that a repetition has one effect.
        slot: what the newest letter of its kind replaces: a model for assign, `-` for config, else the letter's ULID.
        revision: rises with every new decision about this slot. Use the KV revision of the record that the letter
            carries out, so that it survives a restart without a counter of its own.
    """

    kind: str
    address: Address
    data: Message
    letter_id: str
    slot: str
    revision: int
    expires: datetime


class Mailbox:
    """Signs with one service's key and posts to OUT."""

    def __init__(self, js: JetStreamContext, service: str, platform: str, signer: Signer, generation: int) -> None:
        self._js = js
        self._service = service
        self._platform = platform
        self._signer = signer
        self._generation = generation

    async def post(self, draft: Draft, now: datetime) -> None:
        """Put a letter into a mailbox; stored when this returns.

        Raises:
            nats.errors.Error: if JetStream does not acknowledge; repeat with the same draft.
        """
        envelope = write_down(
            draft.kind,
            draft.data,
            letter_id=draft.letter_id,
            service=self._service,
            address=draft.address,
            platform=self._platform,
            time=now,
            expires=draft.expires,
            generation=self._generation,
            revision=draft.revision,
            slot=draft.slot,
            signer=self._signer,
        )
        await self._js.publish(
            out_subject(draft.address, draft.kind, draft.slot),
            envelope,
            headers={LETTER_ID: draft.letter_id, EXPIRES: str(int(draft.expires.timestamp()))},
        )
