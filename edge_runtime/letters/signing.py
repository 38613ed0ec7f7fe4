"""A stored letter as it travels, over the link or in a bundle: the same words, the same place, the same signature."""

from __future__ import annotations

from datetime import datetime, timedelta

from edge_runtime.identity import Identity
from edge_runtime.letters.reading import Stored
from schemas.errors import MessageError
from schemas.events import Untyped, utc
from schemas.letters import Place, write_up
from schemas.topics import UP_LETTERS


def signed(letter: Stored, identity: Identity, now: datetime, life: timedelta) -> bytes:
    """The envelope; `life` is how long, from now on, a copy on its way is worth anything.

    Raises:
        ContractError: if the letter cannot be sent; `Outbox.add` lets none in, but its file may have been changed.
    """
    if letter.kind not in UP_LETTERS:
        raise MessageError(f"letter {letter.id} {letter.kind!r} cannot be signed: no such kind of letter is known here")
    try:
        return write_up(
            letter.kind,
            Untyped.model_validate_json(letter.data),
            Place(letter.epoch, letter.lane, letter.sequence, letter.floor),
            letter_id=letter.id,
            address=identity.address,
            platform=identity.platform,
            time=min(utc(letter.time), now),  # a clock that was wrong then may be right now
            expires=now + life,
            signer=identity.signer,
        )
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise MessageError(f"letter {letter.id} {letter.kind} cannot be signed: {error}") from error
