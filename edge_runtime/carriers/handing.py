"""Hands what this device carries to the platform once it has a link: fragment by fragment, as letters of its own.

The letter's receipt ends custody. Few are on their way at a time, so that they never push this device's own letters out
of the outbox.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ulid import ULID

from edge_runtime.carriers.routing import to_hand_in
from edge_runtime.carriers.store import CarriedStore
from edge_runtime.letters.outbox import Outbox
from edge_runtime.logs import Log
from schemas.bundles import bundle_to_letter
from schemas.events import Message

log = Log(__name__)

KIND = "bundle"
MAX_WAITING = 8
OUTBOX_SHARE = 0.5
"""Nothing is handed in while the outbox is fuller than this."""


@dataclass(frozen=True, slots=True)
class Counter:
    """Where fragments are handed in.

    Attributes:
        send: stores a letter with a given id.
        outbox_bytes: bound of the outbox.
    """

    store: CarriedStore
    outbox: Outbox
    linked: Callable[[], bool]
    send: Callable[[str, Message, str], object]
    outbox_bytes: int


class HandingIn:
    """Looks after the letters that carry fragments."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def run(self) -> int:
        """Note receipts, and hand in the next ones; returns how many were handed in now.

        Raises:
            OutboxError: if the disk does not do its part.
        """
        waiting = self._note()
        counter, handed = self._counter, 0
        if not counter.linked():
            return 0
        letters = counter.store.letters()
        for key in to_hand_in(counter.store.carried()):
            if waiting + handed >= MAX_WAITING:
                break
            if key in letters:
                continue
            if counter.outbox.summary().waiting.bytes > counter.outbox_bytes * OUTBOX_SHARE:
                break
            parcel = counter.store.load(key)
            if parcel is None:
                continue
            # First the id: after a crash in between, the letter is seen not to be there and gets another.
            letter_id = str(ULID())
            counter.store.set_letter(key, letter_id)
            counter.send(KIND, bundle_to_letter(parcel), letter_id)
            handed += 1
            log.info("fragment.handed_in", bundle=key[0], mark=key[1], origin=parcel.head.origin, letter=letter_id)
        return handed

    def _note(self) -> int:
        """Returns how many letters wait for their receipt."""
        counter = self._counter
        letters = counter.store.letters()
        if not letters:
            return 0
        # In this order: what another process gives up in between is not here and waits, which is no receipt.
        waiting = {letter_id for letter_id, _ in counter.outbox.waiting(KIND)}
        present = set(counter.outbox.ids(KIND))
        counter.store.let_go([key for key, letter in letters.items() if letter in present - waiting])
        for key, letter in letters.items():
            if letter not in present:
                # Given up by the outbox, or never stored: this device still answers for the fragment.
                counter.store.set_letter(key, None)
        return len(waiting & set(letters.values()))
