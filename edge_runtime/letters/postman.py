"""Sends what the outbox holds, in order and within a window, until it is receipted. The shell around `sending`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from edge_runtime.errors import OutboxError
from edge_runtime.identity import Identity
from edge_runtime.letters.outbox import Outbox, Stored
from edge_runtime.letters.sending import Flight, RoundTrip, Run, cut_short, plan, recalled, receipted
from edge_runtime.link import Link
from edge_runtime.logs import Log
from schemas.errors import ContractError
from schemas.events import LANES, Lane, Untyped, utc
from schemas.letters import Place, write_up
from schemas.topics import Channel, Topic

log = Log(__name__)

LETTER_LIFE = timedelta(days=7)
"""From its sending: how long a copy on its way is worth anything."""
POLL_S = 1.0
"""How soon a letter of another process on the same outbox is noticed."""


@dataclass(frozen=True, slots=True)
class Post:
    """What the postman works with."""

    outbox: Outbox
    link: Link
    identity: Callable[[], Identity]
    now: Callable[[], datetime]
    silent: Callable[[], None] = lambda: None
    """Told when receipts stay away time and again."""
    only: str | None = None
    """The one kind that may be sent: a device with nothing but a token may only enrol."""


class Postman:
    """Idle until `begin`, then sends; `stop` when the link is down."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._flights: dict[Lane, Flight] = {}
        self._active = False
        self._wake = asyncio.Event()
        self.round_trip = RoundTrip()
        self.problem: str | None = None

    def begin(self, marks: Mapping[Lane, int]) -> None:
        """Start from the courier's marks; a lane that it does not name is at 0."""
        self._flights = {lane: Flight(mark=marks.get(lane, 0), sent=marks.get(lane, 0)) for lane in LANES}
        self._active = True
        self._wake.set()

    def stop(self) -> None:
        """Send nothing until the next `begin`."""
        self._active = False

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def receipt(self, marks: Mapping[Lane, int]) -> None:
        """Take in marks; lanes that are not named keep theirs."""
        now = time.monotonic()
        for lane, mark in marks.items():
            before = self._flights.get(lane, Flight())
            if mark > before.mark and before.waits and not before.silences:
                self.round_trip = self.round_trip.with_sample(now - before.since)
            if mark < before.mark:
                log.warning("letters.mark_went_back", lane=lane, mark=mark, was=before.mark)
            self._flights[lane] = receipted(before, mark, now)
        self._wake.set()

    def resend_from(self, lane: Lane, sequence: int) -> None:
        """Send again what is still here from `sequence` on."""
        if self._active:
            self._flights[lane] = recalled(self._flights[lane], sequence, time.monotonic())
            self._wake.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self._wake.clear()
            timeout = POLL_S
            if self._active:
                try:
                    due = self._pump()
                    self.problem = None
                except OutboxError as error:
                    due, self.problem = None, str(error)
                    log.error("outbox.failed", reason=error.reason, message=str(error))
                if due is not None:
                    timeout = min(POLL_S, max(0.01, due - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()

    def _pump(self) -> float | None:
        dues = []
        for lane in LANES:
            flight = self._flights[lane]
            held = self._post.outbox.run_above(lane, flight.mark)
            decision = plan(flight, held, time.monotonic(), self.round_trip.wait_s)
            if decision.flight.silences > max(flight.silences, 1):
                self._post.silent()
            flight = decision.flight
            if decision.run is not None:
                sent = self._send(lane, decision.run)
                if sent < decision.run.last:
                    flight = cut_short(flight, sent)
            self._flights[lane] = flight
            if decision.due is not None:
                dues.append(decision.due)
        return min(dues, default=None)

    def _send(self, lane: Lane, run: Run) -> int:
        """Returns the last sequence that the link took."""
        sent = run.first - 1
        for letter in self._post.outbox.load(lane, run):
            if lane != "control" and self._post.link.congested:
                break
            if self._post.only not in {None, letter.kind} or not self._send_one(letter):
                break
            sent = letter.sequence
        return sent

    def _send_one(self, letter: Stored) -> bool:
        identity, now = self._post.identity(), self._post.now()
        try:
            raw = write_up(
                letter.kind,
                Untyped.model_validate_json(letter.data),
                Place(letter.epoch, letter.lane, letter.sequence, letter.floor),
                letter_id=letter.id,
                address=identity.address,
                platform=identity.platform,
                time=utc(letter.time),
                expires=now + LETTER_LIFE,
                signer=identity.signer,
            )
        except ContractError as error:
            # `Outbox.add` lets nothing in that cannot be sent; a file that was tampered with could hold it.
            log.error("letters.unsendable", letter=letter.id, kind=letter.kind, reason=str(error))
            return False
        return self._post.link.publish(Topic(identity.address, Channel.LETTER, letter.kind).mqtt, raw)
