"""Which receipt is the courier's newest word, by whichever way it came.

Marks may go backwards: the courier lost letters, or an operator recalls them. So a receipt by carrier counts whole, as
one over the link does, but only if nothing newer was heard: a carrier may bring it late, or a second time.
"""

from __future__ import annotations

import json

from edge_runtime.letters.inbox import Inbox
from schemas.courier import Receipt
from schemas.events import DownLetter

NEWEST = "carried_receipt"
"""Fact: generation and revision of the newest receipt by whichever way, as far as it was written down. Its name is from
when it held carried ones alone."""
LINK_STEP = 60_000_000
"""Receipts over the link are written down by such steps, to spare the flash; revisions of receipts are microseconds."""

_Order = tuple[int, int]


class NewestReceipt:
    """The order of the courier's receipts: (generation, revision)."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._heard: _Order = (-1, -1)

    def by_link(self, receipt: DownLetter[Receipt], *, lowers: bool = False) -> None:
        """One came over the link, in the session that it answers; so it is no old one.

        Args:
            receipt: of this outbox's epoch.
            lowers: some mark goes back. After a restart no older one by carrier may lift it again.
        """
        order, written = _order(receipt), self._written()
        self._heard = max(self._heard, order)
        if order[0] > written[0] or order >= (written[0], written[1] + (1 if lowers else LINK_STEP)):
            self._inbox.remember(NEWEST, json.dumps(order))

    def is_newer(self, receipt: DownLetter[Receipt]) -> bool:
        """Whether one that came by carrier says more than all before."""
        return _order(receipt) > max(self._heard, self._written())

    def by_carrier(self, receipt: DownLetter[Receipt]) -> None:
        """A newer one has been acted on."""
        self._inbox.remember(NEWEST, json.dumps(_order(receipt)))

    def _written(self) -> _Order:
        return self._inbox.recall(NEWEST, _read, (-1, -1))


def _read(text: str) -> _Order:
    generation, revision = json.loads(text)
    return int(generation), int(revision)


def _order(receipt: DownLetter[Receipt]) -> _Order:
    return receipt.generation, receipt.revision
