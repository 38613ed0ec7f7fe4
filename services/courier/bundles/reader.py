"""Reads carriers' letters from IN for the unpacker.

A letter stays unacknowledged until the bundle that it is a part of is judged, so that whatever dies in between is
repeated by the next courier; the marks of the letters inside see to it that a repetition stores nothing twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from schemas.bundles import Parcel, bundle_of_letter
from schemas.envelope import parse
from schemas.errors import ContractError
from schemas.letters import read_up
from schemas.topics import in_pattern, parse_in
from services.courier.bundles.opening import bundle_subject
from services.courier.bundles.unpacker import Outcome, Unpacker
from services.courier.settings import CourierSettings
from services.kit.bus import Bus
from services.kit.puller import Puller, PullError, open_consumer, sequence_of, stored_s
from services.kit.rejects import Turnstile
from services.kit.streams import IN

log = structlog.get_logger()

DURABLE = "courier-bundle"
BATCH = 64
PULL_WAIT_S = 5.0
RETRY_S = 0.25
EXTENSIONS = 3
"""How often a held letter is kept from coming again within the time after which it would."""


class BundleReader:
    """Works while this courier is active."""

    def __init__(self, bus: Bus, unpacker: Unpacker, turnstile: Turnstile, settings: CourierSettings) -> None:
        self._bus = bus
        self._unpacker = unpacker
        self._turnstile = turnstile
        self._settings = settings
        self._messages: dict[int, Msg] = {}
        self._puller: Puller | None = None
        self._era = 0
        self._extended_at: float | None = None

    @property
    def extend_interval_s(self) -> float:
        """How often `extend` must be called."""
        return self._settings.bundle_ack_wait_s / EXTENSIONS

    def doubt(self) -> None:
        """The connection was lost: places in IN may name other letters when it is back.

        Nothing is lost with what is forgotten here: it comes again.
        """
        self._era += 1
        self._messages.clear()
        self.interrupt("what it held is in doubt")
        self._unpacker.doubt()

    def interrupt(self, why: str) -> None:
        """The consumer may be gone."""
        if self._puller is not None:
            self._puller.interrupt(why)

    async def bring(self, parcel: Parcel, waited_s: float) -> Outcome:
        """Take a fragment that an operator hands over; carriers' letters that are done with by it are acknowledged.

        Raises:
            ContractError: as `Unpacker.take`.
        """
        era = self._era
        outcome = await self._unpacker.take(parcel, waited_s=waited_s)
        await self._settle(outcome.settled, era)
        return outcome

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            try:
                self._puller = puller = await self._attach()
                while True:
                    await self._turn(await puller.take(BATCH, PULL_WAIT_S))
            except (NatsError, TimeoutError, PullError) as error:
                log.warning("bundles.attaching_again", error=repr(error))
                await asyncio.sleep(RETRY_S)
            finally:
                await self._detach()

    async def extend(self) -> None:
        """Keep what is held from coming again, and give up what was not completed in time."""
        before, self._extended_at = self._extended_at, time.monotonic()
        slept_s = self._extended_at - (before or self._extended_at)
        if slept_s > self._settings.bundle_ack_wait_s:
            # What this courier held in its sleep belongs to whoever was awake; it has no say over it any more.
            log.warning("bundles.overslept", slept_s=round(slept_s, 1), letters=len(self._messages))
            self.doubt()
        era = self._era
        await self._settle(await self._unpacker.expire(), era)
        for message in list(self._messages.values()):
            await message.in_progress()

    async def _turn(self, messages: list[Msg]) -> None:
        era = self._era
        tickets = [sequence_of(message) for message in messages]
        self._messages.update(zip(tickets, messages, strict=True))
        for ticket, message in zip(tickets, messages, strict=True):
            if era != self._era:
                return
            await self._settle(await self._take(ticket, message), era)

    async def _take(self, ticket: int, message: Msg) -> tuple[int, ...]:
        subject = message.subject
        try:
            _, carrier = parse_in(subject)
            subject = bundle_subject(carrier)
            # The intake checked signature, source and age before it stored this.
            letter = read_up(parse(message.data).body, "bundle")
            parcel = bundle_of_letter(letter.data)
            waited_s = time.time() - stored_s(message)
            outcome: Outcome = await self._unpacker.take(parcel, carrier=carrier, ticket=ticket, waited_s=waited_s)
        except ContractError as error:
            await self._turnstile.refuse(subject, message.data, error)
            return (ticket,)
        return outcome.settled

    async def _settle(self, tickets: Iterable[int], era: int) -> None:
        for ticket in tickets:
            message = self._messages.pop(ticket, None) if era == self._era else None
            if message is not None:
                await message.ack()

    async def _attach(self) -> Puller:
        config = ConsumerConfig(
            durable_name=DURABLE,
            filter_subject=in_pattern("bundle"),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._settings.bundle_ack_wait_s,
            max_ack_pending=self._settings.bundle_fragments + self._settings.early_fragments + 2 * BATCH,
        )
        return await open_consumer(self._bus, IN.name, config)

    async def _detach(self) -> None:
        puller, self._puller = self._puller, None
        if puller is not None:
            await puller.close()
