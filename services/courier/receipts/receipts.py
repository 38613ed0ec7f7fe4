"""Signing and sending receipts: what a device may delete, and the answer to its hello."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from datetime import timedelta

import structlog
from nats.errors import Error as NatsError
from ulid import ULID

from schemas.courier import Receipt
from schemas.ids import Address
from schemas.letters import write_down
from schemas.topics import Channel, Topic
from services.courier import metrics
from services.courier.pacing import Due, Pacer
from services.courier.premises import Premises
from services.courier.receipts.sessions import Sessions
from services.courier.up.marks import Marks
from services.kit.service import utc_now

log = structlog.get_logger()

REVISIONS_PER_S = 1_000_000
"""Of all devices together: a receipt's revision is the time of its signing, in microseconds."""


class Receipts:
    """Sends receipts while the marks are known; what is asked for meanwhile is sent once they are."""

    def __init__(self, premises: Premises, sessions: Sessions) -> None:
        self._premises = premises
        self._sessions = sessions
        self._pacer = Pacer(premises.settings.receipt_interval_s)
        self._owed: OrderedDict[Address, str] = OrderedDict()
        self._marks: Marks | None = None
        self._revision = 0
        self._kick = asyncio.Event()

    def suspend(self) -> None:
        """The marks are unknown for now."""
        self._marks = None

    async def resume(self, marks: Marks) -> None:
        """The marks are known (again)."""
        self._marks = marks
        owed, self._owed = self._owed, OrderedDict()
        for address, epoch in owed.items():
            await self.ask(address, epoch)

    async def ask(self, address: Address, epoch: str) -> None:
        """A device is owed the marks of an epoch."""
        if self._marks is None:
            self._owed[address] = epoch
            if len(self._owed) > self._premises.settings.max_sessions:
                self._owed.popitem(last=False)
            return
        due = self._pacer.ask(address, epoch, time.monotonic())
        if due is not None:
            await self._send(due)
        self._kick.set()

    def write(self, address: Address, session: str, epoch: str, lifetime_s: float) -> bytes | None:
        """A signed receipt, to travel by other means than the device's own link; None while the marks are unknown."""
        return None if self._marks is None else self._sign(Due(address, epoch), session, self._marks, lifetime_s)

    async def run(self) -> None:
        """Send what had to rest, when its time has come."""
        while True:
            for due in self._pacer.due(time.monotonic()):
                await self._send(due)
            self._kick.clear()
            wake = self._pacer.next_wake()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wake is None else max(0.0, wake - time.monotonic())):
                    await self._kick.wait()

    async def _send(self, due: Due) -> None:
        session = self._sessions.get(due.address)
        if session is None:
            # The device says hello again when receipts stay away.
            metrics.UNADDRESSED.inc()
            return
        if self._marks is None:
            self._owed[due.address] = due.what
            return
        raw = self._sign(due, session, self._marks, self._premises.settings.receipt_lifetime_s)
        try:
            await self._premises.bus.nc.publish(Topic(due.address, Channel.DOWN, "receipt").subject, raw)
        except NatsError as error:
            # Duplicates earn the receipt again.
            log.warning("receipt.not_sent", device=str(due.address), error=repr(error))
            return
        metrics.RECEIPTS.inc()

    def _sign(self, due: Due, session: str, marks: Marks, lifetime_s: float) -> bytes:
        now = utc_now()
        record = self._premises.book.get(due.address)
        held = record.quarantine if record is not None else None
        # Finer than any courier signs, so that it never runs ahead of the clock, by which the next courier begins.
        self._revision = max(self._revision + 1, int(now.timestamp() * REVISIONS_PER_S))
        return write_down(
            "receipt",
            Receipt.model_validate(
                {
                    "session": session,
                    "epoch": due.what,
                    "marks": marks.of(due.address, due.what),
                    "heads": marks.heads(due.address, due.what),
                    "suspended": held and {"since": held.at, "message": held.message[:512]},
                }
            ),
            letter_id=str(ULID()),
            service="courier",
            address=due.address,
            platform=self._premises.platform,
            time=now,
            expires=now + timedelta(seconds=lifetime_s),
            generation=self._premises.key.generation,
            revision=self._revision,
            slot="-",
            signer=self._premises.key.signer,
        )
