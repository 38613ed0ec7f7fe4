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

from schemas.envelope import parse
from schemas.errors import ContractError
from schemas.events import UpLetter
from schemas.ids import Address
from schemas.letters import check_up, read_up
from schemas.topics import in_pattern, parse_in
from services.kit.bus import Bus, wait_for
from services.kit.devices import DeviceBook
from services.kit.errors import UnreachableError
from services.kit.puller import Puller, PullError, open_consumer
from services.kit.rejects import Rejects
from services.kit.streams import IN

log = structlog.get_logger()

BATCH = 64
PULL_WAIT_S = 5.0
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
        self._puller: Puller | None = None

    async def run(self) -> None:
        """Read until cancelled; a lost connection or consumer is waited out and made again."""
        self._bus.on_disconnect(self._disconnected)
        while True:
            try:
                self._puller = puller = await self._attach()
                while True:
                    for message in await puller.take(BATCH, PULL_WAIT_S):
                        await self._take(message)
            except (NatsError, TimeoutError, UnreachableError, PullError) as error:
                log.warning("intake.retried", service=self._service, kind=self._kind, error=repr(error))
            finally:
                await self._detach()
            await asyncio.sleep(RETRY_S)

    def _disconnected(self) -> None:
        if self._puller is not None:
            self._puller.interrupt("the connection was lost, and what was asked for with it")

    async def _attach(self) -> Puller:
        config = ConsumerConfig(
            durable_name=f"{self._service}-{self._kind}",
            filter_subject=in_pattern(self._kind),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            deliver_policy=DeliverPolicy.ALL,
            max_ack_pending=4 * BATCH,
        )
        return await wait_for(lambda: open_consumer(self._bus, IN.name, config), "stream IN")

    async def _detach(self) -> None:
        puller, self._puller = self._puller, None
        if puller is not None:
            await puller.close()

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
