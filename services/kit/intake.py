"""How a service reads verified letters from IN: each until its effect is stored, poison set aside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from schemas.envelope import parse
from schemas.errors import ContractError
from schemas.events import UpLetter
from schemas.ids import Address
from schemas.letters import check_up, read_up
from schemas.topics import in_pattern, parse_in
from services.kit.bus import Bus, wait_for
from services.kit.devices import DeviceBook
from services.kit.errors import UnreachableError
from services.kit.rejects import Rejects
from services.kit.streams import IN

log = structlog.get_logger()

BATCH = 64
FETCH_TIMEOUT_S = 2.0
ACK_WAIT_S = 10.0
RETRY_S = 1.0
KEY_WAIT_S = 5.0
"""How long a letter may wait for its sender's record, which another bucket brings."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A letter whose signature, source, platform, recipient and age this service has checked itself."""

    address: Address
    letter: UpLetter[Any]
    envelope: bytes
    stored_at: datetime
    """When IN took it."""


Handler = Callable[[Arrival], Awaitable[None]]


class Intake:
    """One durable consumer on IN for one kind.

    The handler sees every letter at least once and must have one effect per letter. If it raises a `ContractError`, the
    letter goes to REJECTS; if it raises anything else, the same letter is tried again after a second and those behind
    it wait. While nothing breaks, letters come in the order of IN, but that is no promise: what was not acknowledged
    within `ACK_WAIT_S`, after a crash or behind a letter that was retried, comes again behind newer letters. A handler
    must not rest on more than that each letter, known by its id, counts once.
    """

    def __init__(
        self, bus: Bus, service: str, platform: str, kind: str, handler: Handler, book: DeviceBook | None
    ) -> None:
        """`book` None: the kind proves itself (enrol) and the handler verifies it."""
        self._bus = bus
        self._service = service
        self._platform = platform
        self._kind = kind
        self._handler = handler
        self._book = book
        self._rejects = Rejects(bus, service)
        self._subscription: JetStreamContext.PullSubscription | None = None

    async def run(self) -> None:
        """Read until cancelled; a lost connection or consumer is waited out and made again."""
        while True:
            try:
                subscription = await self._subscribe()
                await self._read(subscription)
            except (NatsError, TimeoutError, UnreachableError) as error:
                log.warning("intake.retried", service=self._service, kind=self._kind, error=repr(error))
                await asyncio.sleep(RETRY_S)

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        durable = f"{self._service}-{self._kind}"
        config = ConsumerConfig(
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            deliver_policy=DeliverPolicy.ALL,
            max_ack_pending=4 * BATCH,
        )
        await self._drop()
        self._subscription = await wait_for(
            lambda: self._bus.js.pull_subscribe(in_pattern(self._kind), durable=durable, stream=IN.name, config=config),
            "stream IN",
        )
        return self._subscription

    async def _drop(self) -> None:
        if self._subscription is not None:
            try:
                await self._subscription.unsubscribe()
            except NatsError as error:
                log.debug("intake.unsubscribed", error=repr(error))
            self._subscription = None

    async def _read(self, subscription: JetStreamContext.PullSubscription) -> None:
        while True:
            try:
                batch = await subscription.fetch(BATCH, timeout=FETCH_TIMEOUT_S)
            except TimeoutError:  # nats-py raises its own or the bare one
                # A consumer that vanished also just times out: ask for it.
                await subscription.consumer_info()
                continue
            for message in batch:
                await self._take(message)

    async def _take(self, message: Msg) -> None:
        while True:
            try:
                await self._handler(await self._open(message))
            except ContractError as error:
                await self._rejects.keep(
                    message.data, subject=message.subject, kind=self._kind, reason=error.reason, message=str(error)
                )
            except Exception as error:  # an effect that failed must be tried again, whatever it was
                log.exception("letter.retried", service=self._service, kind=self._kind, error=repr(error))
                await message.in_progress()
                await asyncio.sleep(RETRY_S)
                continue
            await message.ack()
            return

    async def _open(self, message: Msg) -> Arrival:
        _, address = parse_in(message.subject)
        envelope = parse(message.data)
        if self._book is not None:
            await self._verify(envelope_address=address, raw=message.data)
        letter = read_up(envelope.body, self._kind)
        stored_at = message.metadata.timestamp or datetime.now(UTC)
        # It was in time when IN took it, however late and often this service reads it.
        check_up(letter, address, self._platform, stored_at)
        return Arrival(address, letter, message.data, stored_at)

    async def _verify(self, envelope_address: Address, raw: bytes) -> None:
        assert self._book is not None
        verifier = await self._book.wait_verifier(envelope_address, KEY_WAIT_S)
        keys = {verifier.keyid: verifier} if verifier else {}
        parse(raw).verify(keys)
