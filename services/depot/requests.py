"""What devices say to the depot: hello and want. Parses, refuses with a reason, hands on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from prometheus_client import Counter

from schemas.depot import TrustState, Want
from schemas.errors import ContractError, MessageError
from schemas.ids import Address
from schemas.letters import read_state
from schemas.topics import Channel, Topic, parse_subject
from services.depot.packs import Packs
from services.depot.pieces import UNSENT, PieceServer, Publish
from services.depot.queues import Item
from services.depot.repository import Repository
from services.kit.devices import DeviceBook
from services.kit.errors import PlatformError
from services.kit.rejects import Turnstile

log = structlog.get_logger()

MAX_WANT_BYTES = 16_384
TRUST_BURST = 10.0
TRUST_PER_S = 1.0
MAX_BUDGETS = 10_000

PACKS = Counter("causeway_depot_trust_packs_total", "Trust packs sent to devices.")
THROTTLED = Counter("causeway_depot_trust_throttled_total", "Trust packs withheld from devices that ask too often.")


class Budget:
    """How many trust packs a device may still have now: a token bucket per device, the oldest forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tokens: OrderedDict[Address, tuple[float, float]] = OrderedDict()

    def spend(self, address: Address) -> bool:
        """Take one; False if there is none."""
        now = self._clock()
        tokens, at = self._tokens.pop(address, (TRUST_BURST, now))
        tokens = min(TRUST_BURST, tokens + (now - at) * TRUST_PER_S)
        granted = tokens >= 1
        self._tokens[address] = (tokens - granted, now)
        if len(self._tokens) > MAX_BUDGETS:
            self._tokens.popitem(last=False)
        return granted


class Requests:
    """Answers devices.

    Trust goes to any device that the bus let in, since a new one needs it to enrol, and it is public. Pieces go to
    enrolled devices only.
    """

    def __init__(
        self,
        repository: Repository,
        packs: Packs,
        pieces: PieceServer,
        book: DeviceBook,
        turnstile: Turnstile,
        publish: Publish,
        clock: Callable[[], float],
    ) -> None:
        self._repository = repository
        self._packs = packs
        self._pieces = pieces
        self._book = book
        self._turnstile = turnstile
        self._publish = publish
        self._budget = Budget(clock)

    async def hello(self, message: Msg) -> None:
        """Answer a hello with what the device lacks."""
        await self._guarded(message, self._hello)

    async def parcel(self, message: Msg) -> None:
        """Answer a want."""
        await self._guarded(message, self._want)

    async def _guarded(self, message: Msg, handler: Any) -> None:
        try:
            await handler(parse_subject(message.subject), message.data)
        except ContractError as error:
            await self._turnstile.refuse(message.subject, message.data, error)
        except (PlatformError, NatsError) as error:
            log.error("request.failed", subject=message.subject, error=repr(error))

    async def _hello(self, topic: Topic, raw: bytes) -> None:
        hello = read_state(raw, "hello")
        await self._trust(topic.address, hello.data.trust or TrustState(root=0))

    async def _want(self, topic: Topic, raw: bytes) -> None:
        if topic.kind != "want":
            raise MessageError(f"the depot takes no {topic.kind} parcels", reason="wrong_kind")
        if len(raw) > MAX_WANT_BYTES:
            raise MessageError(f"want of {len(raw)} bytes exceeds {MAX_WANT_BYTES}", reason="oversized")
        want = Want.read(raw)
        if want.trust is not None:
            await self._trust(topic.address, want.trust)
            return
        if want.recipe is None:
            raise MessageError("want names neither trust nor a recipe; name the recipe that the pieces are of")
        if not self._book.ready.is_set():
            UNSENT.labels("starting").inc()  # the device asks again
            return
        record = self._book.get(topic.address)
        if record is None or record.standing != "enrolled":
            standing = record.standing if record else "unknown"
            raise MessageError(f"want of {topic.address}, which is {standing}: enrol first", reason="not_enrolled")
        pieces: list[str | None] = [*want.pieces] or [None]
        part = None if want.slice is None else (want.slice.offset, want.slice.length)
        if part is not None and len(pieces) != 1:
            raise MessageError(f"want of a slice of {len(pieces)} pieces; name one")
        self._pieces.ask(topic.address, [Item(want.recipe, piece, part) for piece in pieces])

    async def _trust(self, address: Address, held: TrustState) -> None:
        if not self._budget.spend(address):
            THROTTLED.inc()
            return
        pack = self._packs.answer(self._repository.head, held)
        await self._publish(Topic(address, Channel.DOWN, "trust").subject, pack)
        PACKS.inc()
