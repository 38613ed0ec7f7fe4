"""The conversation with the platform: hello until it is answered, then letters both ways, state and parcels.

Used by the agent and, with a token's credentials, by the enrolment. Every connection is a session of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from ulid import ULID

from edge_runtime.clock import FlooredClock
from edge_runtime.errors import OutboxError, TrustError
from edge_runtime.identity import Identity
from edge_runtime.letters.dispatch import Dispatcher
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.mailroom import Desk, Mailroom, check_generation
from edge_runtime.letters.outbox import Outbox
from edge_runtime.letters.postman import Post, Postman
from edge_runtime.link import Callbacks, Dial, Endpoint, Link
from edge_runtime.logs import Log
from edge_runtime.trust.keeper import TrustKeeper
from edge_runtime.trust.keyring import Keyring
from edge_runtime.version import AGENT
from schemas.courier import Clock, Got, Hello, Receipt
from schemas.depot import TrustAnnouncement
from schemas.envelope import parse
from schemas.errors import ContractError, MessageError
from schemas.events import DownLetter, Lane, Message
from schemas.letters import check_down, read_down, write_state
from schemas.registry import EventReport, Gone
from schemas.topics import DOWN_LETTERS, Channel, Topic, device_filters, parse_broadcast, parse_mqtt

log = Log(__name__)

HELLO_AGAIN_S = 1.5
MAX_HELLO_AGAIN_S = 30.0
HELLO_ANYWAY_S = 300.0
GOT_DELAY_S = 0.02
MAX_GOT_IDS = 100
"""As many as fit into a state message of 4 KiB."""
MAX_HELD_IDS = 64


@dataclass(frozen=True, slots=True)
class Premises:
    """What belongs to this device and lives longer than a connection."""

    outbox: Outbox
    inbox: Inbox
    keyring: Keyring
    clock: FlooredClock
    dispatcher: Dispatcher
    identity: Callable[[], Identity]
    endpoint: Callable[[], Endpoint]
    on_answered: Callable[[], None]
    """hello was answered: state may be sent."""
    on_piece: Callable[[bytes], None]
    report: Callable[[EventReport], None]


class Line:
    """One device's conversation. `trust` must be set before `run`."""

    def __init__(self, premises: Premises, *, bootstrap: bool = False) -> None:
        """`bootstrap`: speak with the token's credentials, which allow hello, got, want and enrol only."""
        self._premises = premises
        self._bootstrap = bootstrap
        self.link = Link(
            Callbacks(
                dial=self._dial,
                up=self._up,
                down=self._down,
                message=self._message,
                drained=self._drained,
            )
        )
        self.postman = Postman(
            Post(
                outbox=premises.outbox,
                link=self.link,
                identity=premises.identity,
                now=premises.clock.now,
                only="enrol" if bootstrap else None,
                silent=self._hello_again,
            )
        )
        self.mailroom = Mailroom(
            Desk(
                inbox=premises.inbox,
                keyring=premises.keyring,
                dispatcher=premises.dispatcher,
                identity=premises.identity,
                now=premises.clock.now,
                got=self._got,
                report=premises.report,
                ask_trust=self._ask_trust,
            )
        )
        self.trust: TrustKeeper
        self.session = str(ULID())
        self.answered = False
        """Whether this session's hello has its receipt; nothing else is sent before."""
        self.rtt_ms: float | None = None
        self._trusted = False
        self._group: asyncio.TaskGroup | None = None
        self._hello: asyncio.Task[None] | None = None
        self._hello_due = asyncio.Event()
        self._hello_sent = 0.0
        self._hellos = 0
        self._receipt: bytes | None = None
        self._gots: dict[str, None] = {}
        self._flushing: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            ExceptionGroup: if a part of the conversation failed, which ends the whole.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self.postman.run(), name="postman")
            group.create_task(self.trust.run(), name="trust")
            group.create_task(self.link.run(), name="link")

    def send_state(self, kind: str, data: Message) -> bool:
        """Send a state message; False if that is not possible now.

        Raises:
            MessageError: `oversized` above 4 KiB.
        """
        return self.answered and self._publish_state(kind, data)

    def send_parcel(self, kind: str, raw: bytes) -> bool:
        """Send a parcel; False if that is not possible now."""
        address = self._premises.identity().address
        return self.answered and self.link.publish(Topic(address, Channel.PARCEL, kind).mqtt, raw)

    def trust_looked_at(self) -> None:
        """A pack was verified or refused: what waited for keys can be decided."""
        self._trusted = self._premises.keyring.ready
        receipt, self._receipt = self._receipt, None
        if receipt is not None:
            self._take_receipt(receipt)
        self.mailroom.trust_changed()

    def farewell(self) -> None:
        """Say what is still to be said before a clean end."""
        self._flush_gots()
        if self.answered and not self._bootstrap:
            self._publish_state("gone", Gone(session=self.session))

    def _drained(self) -> None:
        self.postman.wake()

    def _ask_trust(self) -> None:
        self.trust.ask()

    def _dial(self) -> Dial:
        identity = self._premises.identity()
        self.session = str(ULID())
        own, fleet = device_filters(identity.address)
        if self._bootstrap:
            assert identity.token is not None
            return Dial(self._premises.endpoint(), identity.token.client_id, identity.token.bootstrap_jwt, (own,), None)
        assert identity.credentials is not None
        credentials = identity.credentials
        gone = write_state(
            "gone",
            Gone(session=self.session),
            event_id=str(ULID()),
            address=identity.address,
            time=self._premises.clock.now(),
        )
        will = (Topic(identity.address, Channel.STATE, "gone").mqtt, gone)
        return Dial(self._premises.endpoint(), credentials.client_id, credentials.jwt, (own, fleet), will)

    def _up(self) -> None:
        self.answered, self._trusted, self._hellos = False, False, 0
        self._begin_hello()

    def _down(self) -> None:
        self.answered = False
        self.postman.stop()
        self._end_hello()

    def _begin_hello(self) -> None:
        # In the group: a hello that ended in silence would leave a connection that says nothing more.
        assert self._group is not None, "the link is up only while the line runs"
        self._end_hello()
        self._hello = self._group.create_task(self._say_hello(), name="hello")

    def _end_hello(self) -> None:
        if self._hello is not None:
            self._hello.cancel()

    async def _say_hello(self) -> None:
        wait_s = HELLO_AGAIN_S
        while True:
            self._publish_hello()
            self._hellos += 1
            self._hello_sent = time.monotonic()
            await self._rest(wait_s)
            wait_s = min(MAX_HELLO_AGAIN_S, wait_s * 1.5)
            if self.answered and self._trusted:
                wait_s = HELLO_AGAIN_S
                # A letter whose copies were all lost, or a missed announcement, is found out by asking now and then.
                await self._rest(HELLO_ANYWAY_S)

    async def _rest(self, wait_s: float) -> None:
        self._hello_due.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s * random.uniform(0.7, 1.3)):  # noqa: S311
                await self._hello_due.wait()

    def _hello_again(self) -> None:
        """Receipts stay away: perhaps a new courier does not know this session."""
        log.info("line.silent", session=self.session)
        self._hello_due.set()

    def _publish_hello(self) -> None:
        try:
            hello = self._hello_data()
            try:
                self._publish_state("hello", hello)
            except MessageError:
                # Long names of models; the courier redelivers what is held, and is told again.
                self._publish_state("hello", hello.model_copy(update={"held": []}))
        except OutboxError as error:
            log.error("outbox.failed", reason=error.reason, message=str(error))

    def _hello_data(self) -> Hello:
        premises = self._premises
        lanes = premises.outbox.lanes()
        return Hello(
            session=self.session,
            epoch=premises.outbox.epoch,
            sent={lane: issued for lane, (issued, _) in lanes.items()},
            marks={lane: mark for lane, (_, mark) in lanes.items()},
            held=premises.inbox.newest_ids(MAX_HELD_IDS),
            trust=self.trust.state(),
            agent=AGENT,
            clock=Clock(synchronised=premises.clock.synchronised(), floor=premises.inbox.time_floor()),
        )

    def _message(self, topic: str, payload: bytes) -> None:
        broadcast = parse_broadcast(topic)
        try:
            if broadcast is not None:
                self.trust.announced(TrustAnnouncement.read(payload))
                return
            parsed = parse_mqtt(topic)
            if parsed.kind == "receipt":
                self._take_receipt(payload)
            elif parsed.kind == "trust":
                self.trust.offer(payload)
            elif parsed.kind == "piece":
                self._premises.on_piece(payload)
            elif parsed.kind in DOWN_LETTERS:
                self.mailroom.receive(parsed.kind, payload)
        except ContractError as error:
            log.warning("message.refused", topic=topic, reason=error.reason, message=str(error))
        except OutboxError as error:
            log.error("inbox.failed", reason=error.reason, message=str(error))

    def _take_receipt(self, raw: bytes) -> None:
        premises, identity = self._premises, self._premises.identity()
        try:
            envelope = parse(raw)
            key = premises.keyring.verify(envelope, "receipt")
            letter: DownLetter[Receipt] = read_down(envelope.body, "receipt")
            check_generation(letter, key)
            premises.inbox.prove(key.keyid, key.generation, letter.time)
            check_down(letter, identity.address, identity.platform, premises.clock.now())
            self._apply(letter.data)
        except TrustError as error:
            if error.reason == "unknown_key":
                self._receipt = raw
                if premises.keyring.ready:
                    self.trust.ask()
                return
            log.warning("receipt.refused", reason=error.reason, message=str(error))
        except ContractError as error:
            log.warning("receipt.refused", reason=error.reason, message=str(error))
        except OutboxError as error:
            log.error("outbox.failed", reason=error.reason, message=str(error))

    def _apply(self, receipt: Receipt) -> None:
        outbox = self._premises.outbox
        if receipt.session != self.session or receipt.epoch != outbox.epoch:
            return
        lanes = outbox.lanes()
        # A receipt is whole: a lane that it does not name was never heard of, or is forgotten.
        marks: dict[Lane, int] = dict.fromkeys(lanes, 0) | receipt.marks
        above = {lane: mark for lane, mark in marks.items() if mark > lanes.get(lane, (0, 0))[0]}
        if above:
            self._start_over(above)
            return
        outbox.receipt(marks)
        if self.answered:
            self.postman.receipt(marks)
            return
        self.answered = True
        if self._hellos == 1:
            self.rtt_ms = (time.monotonic() - self._hello_sent) * 1_000
        log.info("line.answered", session=self.session, marks=marks)
        self.postman.begin(marks)
        self._flush_gots()
        self._premises.on_answered()

    def _start_over(self, above: dict[Lane, int]) -> None:
        """The courier has letters of this epoch that this outbox never wrote: its disk was restored from an image."""
        self.answered = False
        self.postman.stop()
        epoch = self._premises.outbox.renew_epoch()
        log.error("outbox.new_epoch", epoch=epoch, marks_above_issued=above)
        self._premises.report(
            EventReport(
                name="outbox.new_epoch",
                severity="high",
                reason="mark_above_issued",
                message="the courier holds letters of the last epoch that this outbox never issued: "
                "its disk was restored from an older image, or another device uses its key",
                details={f"mark_{lane}": mark for lane, mark in above.items()},
            )
        )
        self._begin_hello()

    def _got(self, letter_id: str) -> None:
        self._gots[letter_id] = None
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(GOT_DELAY_S, self._flush_gots)

    def _flush_gots(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        while self._gots and self.answered:
            ids = list(self._gots)[:MAX_GOT_IDS]
            if not self._publish_state("got", Got(ids=ids)):
                return
            for letter_id in ids:
                del self._gots[letter_id]

    def _publish_state(self, kind: str, data: Message) -> bool:
        premises = self._premises
        address = premises.identity().address
        raw = write_state(kind, data, event_id=str(ULID()), address=address, time=premises.clock.now())
        return self.link.publish(Topic(address, Channel.STATE, kind).mqtt, raw)
