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
from datetime import datetime

from ulid import ULID

from edge_runtime.clock import FlooredClock
from edge_runtime.errors import OutboxError, TrustError
from edge_runtime.identity import Identity
from edge_runtime.letters.dispatch import Dispatcher
from edge_runtime.letters.greeting import greeting
from edge_runtime.letters.heads import foreign_marks
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.mailroom import Desk, Mailroom, check_generation
from edge_runtime.letters.newest import NewestReceipt
from edge_runtime.letters.outbox import Outbox
from edge_runtime.letters.postman import Post, Postman
from edge_runtime.letters.sending import Grant
from edge_runtime.letters.standing import Standing
from edge_runtime.letters.states import StateDesk
from edge_runtime.link.link import Callbacks, Dial, Endpoint, Link, Measured
from edge_runtime.logs import Log
from edge_runtime.trust.keeper import TrustKeeper
from edge_runtime.trust.keyring import Keyring
from schemas.courier import Hello, Receipt
from schemas.depot import TrustAnnouncement
from schemas.envelope import parse
from schemas.errors import ContractError, MessageError
from schemas.events import DownLetter, Lane, Message
from schemas.letters import check_down, read_down, write_state
from schemas.registry import EventReport, Gone
from schemas.topics import DOWN_LETTERS, Channel, Topic, device_filters, parse_broadcast, parse_mqtt

log = Log(__name__)

HELLO_AGAIN_S = 1.5
HELLO_ROUND_TRIPS = 2
"""Added to it: on a far link an answer takes that long."""
MAX_HELLO_AGAIN_S = 30.0
HELLO_ANYWAY_S = 300.0

CARRIED_SESSION = "carried_session"
"""Fact: the session that bundles of this device speak in, for good."""


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
    unexpected: Callable[[str, Exception], None]
    """Told of a failure that nobody expected and that ends nothing."""
    on_slice: Callable[[bytes], None] = lambda _: None
    granted: Callable[[], Grant] = Grant
    """What the state of link and device allows the postman."""
    on_bundle: Callable[[bytes], None] = lambda _: None
    """A fragment of a bundle came down, to be carried or for this device."""


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
        self.states = StateDesk(
            self.link, lambda: premises.identity().address, premises.clock.now, lambda: self.answered
        )
        self.postman = Postman(
            Post(
                outbox=premises.outbox,
                link=self.link,
                identity=premises.identity,
                clock=premises.clock,
                only="enrol" if bootstrap else None,
                silent=self._hello_again,
                granted=premises.granted,
            )
        )
        self.mailroom = Mailroom(
            Desk(
                inbox=premises.inbox,
                keyring=premises.keyring,
                dispatcher=premises.dispatcher,
                identity=premises.identity,
                now=self._past,
                got=self.states.got,
                report=premises.report,
                ask_trust=lambda: self.trust.ask(),  # noqa: PLW0108 - it is set later
            )
        )
        self._newest = NewestReceipt(premises.inbox)
        self.trust: TrustKeeper
        self.standing = Standing()
        self.session = str(ULID())
        self.answered = False
        """Whether this session's hello has its receipt; nothing else is sent before."""
        self.hello_s: float | None = None
        """From the last hello that was answered at once to its receipt: the way to the courier and back."""
        self._trusted = False
        self._group: asyncio.TaskGroup | None = None
        self._hello: asyncio.Task[None] | None = None
        self._hello_due = asyncio.Event()
        self._hello_sent = 0.0
        self._hellos = 0
        self._receipt: bytes | None = None

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

    def send_state(self, kind: str, data: Message, key: str = "") -> bool:
        """Send a state message; False if it has to wait until it can be sent, or until a newer one takes its place.

        Args:
            kind: of the message.
            data: its content.
            key: messages of one kind with different keys do not replace each other.

        Raises:
            MessageError: `oversized` above 4 KiB.
        """
        return self.states.send(kind, data, key)

    def send_parcel(self, kind: str, raw: bytes) -> bool:
        """Send a parcel; False if that is not possible now."""
        address = self._premises.identity().address
        return self.answered and self.link.publish(Topic(address, Channel.PARCEL, kind).mqtt, raw)

    def trust_looked_at(self) -> None:
        """A pack was verified or refused: what waited for keys can be decided."""
        self._trusted = self._premises.keyring.ready
        self._premises.clock.keep_anchors(self._premises.keyring.keys.keys())
        receipt, self._receipt = self._receipt, None
        if receipt is not None:
            self.take_receipt(receipt)
        self.mailroom.trust_changed()

    def farewell(self) -> None:
        """Say what is still to be said before a clean end."""
        self.states.flush()
        if self.answered and not self._bootstrap:
            self.states.send_now("gone", Gone(session=self.session))

    def measured(self) -> Measured | None:
        """Figures of the link; None while the courier does not answer."""
        return self.link.measured() if self.answered else None

    def _drained(self) -> None:
        self.states.flush()
        self.postman.wake()

    def _dial(self) -> Dial:
        identity = self._premises.identity()
        self.session = str(ULID())
        own, fleet = device_filters(identity.address)
        if self._bootstrap:
            assert identity.token is not None
            token = identity.token
            past = self._premises.clock.certainly_past()
            return Dial(self._premises.endpoint(), token.client_id, token.bootstrap_jwt, (own,), None, past)
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
        past = self._premises.clock.certainly_past()
        return Dial(self._premises.endpoint(), credentials.client_id, credentials.jwt, (own, fleet), will, past)

    def _up(self) -> None:
        self.answered, self._trusted, self._hellos = False, False, 0
        self.states.new_session()
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
        first_s = HELLO_AGAIN_S + HELLO_ROUND_TRIPS * (self.link.measured().round_trip_s or 0.0)
        wait_s = first_s
        while True:
            self._publish_hello()
            self._hellos += 1
            self._hello_sent = time.monotonic()
            await self._rest(wait_s)
            wait_s = min(MAX_HELLO_AGAIN_S, wait_s * 1.5)
            if self.answered and self._trusted:
                wait_s = first_s
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
                self.states.send_now("hello", hello)
            except MessageError:
                # Long names of models; the courier redelivers what is held, and is told again.
                self.states.send_now("hello", hello.model_copy(update={"held": []}))
        except OutboxError as error:
            log.error("outbox.failed", reason=error.reason, message=str(error))
        except Exception as error:  # noqa: BLE001 - it is said again
            self._premises.unexpected("hello", error)

    def _hello_data(self) -> Hello:
        premises = self._premises
        return greeting(self.session, premises.outbox, premises.inbox, premises.clock, self.trust.state())

    def _message(self, topic: str, payload: bytes) -> None:
        premises, broadcast = self._premises, parse_broadcast(topic)
        try:
            if broadcast is not None:
                self.trust.announced(TrustAnnouncement.read(payload))
                return
            parsed = parse_mqtt(topic)
            takers = {"receipt": self.take_receipt, "trust": self.trust.offer, "piece": premises.on_piece}
            takers |= {"slice": premises.on_slice, "bundle": premises.on_bundle}
            if parsed.kind in takers:
                takers[parsed.kind](payload)
            elif parsed.kind in DOWN_LETTERS:
                self.mailroom.receive(parsed.kind, payload)
        except ContractError as error:
            log.warning("message.refused", topic=topic, reason=error.reason, message=str(error))
        except OutboxError as error:
            log.error("inbox.failed", reason=error.reason, message=str(error))
        except Exception as error:  # noqa: BLE001 - those that came with it are served
            premises.unexpected("message from the platform", error)

    def take_receipt(self, raw: bytes) -> None:
        """Judge a receipt, from the link or out of a bundle."""
        premises, identity = self._premises, self._premises.identity()
        try:
            envelope = parse(raw)
            key = premises.keyring.verify(envelope, "receipt")
            letter: DownLetter[Receipt] = read_down(envelope.body, "receipt")
            check_generation(letter, key)
            premises.inbox.prove(key.keyid, key.generation, letter.time)
            if letter.data.session == self.session and premises.clock.anchor(key.keyid, letter.time):
                self._time_found()
            check_down(letter, identity.address, identity.platform, self._past())
            if letter.data.session == premises.inbox.fact(CARRIED_SESSION):
                self._apply_carried(letter)
            elif letter.data.session == self.session:
                self._apply(letter)
        except (TrustError, ContractError) as error:
            if error.reason != "unknown_key":
                log.warning("receipt.refused", reason=error.reason, message=str(error))
                return
            self._receipt = raw
            if premises.keyring.ready:
                self.trust.ask()
        except OutboxError as error:
            log.error("outbox.failed", reason=error.reason, message=str(error))
        except Exception as error:  # noqa: BLE001 - the next one says it all anew
            premises.unexpected("receipt", error)

    def _past(self) -> datetime:
        """By which expiry is judged: a clock that may stand in 2040 must not make everything old."""
        clock = self._premises.clock
        return clock.certainly_past() or clock.now()

    def _time_found(self) -> None:
        log.info("clock.anchored", now=self._premises.clock.now().isoformat())
        if self.trust.error is not None:
            self.trust.ask()  # it may have been judged by a wrong time

    def _apply(self, letter: DownLetter[Receipt]) -> None:
        outbox, receipt = self._premises.outbox, letter.data
        self.standing.learn(receipt)
        if receipt.epoch != outbox.epoch:
            return
        lanes = outbox.lanes()
        # A receipt is whole: a lane that it does not name was never heard of, or is forgotten.
        marks: dict[Lane, int] = dict.fromkeys(lanes, 0) | receipt.marks
        self._newest.by_link(letter, lowers=any(marks[lane] < known for lane, (_, known) in lanes.items()))
        # Later receipts of a session are about what was sent in it.
        above = foreign_marks(outbox, lanes, marks, receipt.heads, later=self.answered)
        if above:
            self._start_over(above)
            return
        outbox.receipt(marks)
        if self.answered:
            self.postman.receipt(marks)
            return
        self.answered = True
        if self._hellos == 1:
            self.hello_s = time.monotonic() - self._hello_sent
        log.info("line.answered", session=self.session, marks=marks)
        self.postman.begin(marks, self.hello_s if self._hellos == 1 else None)
        self.states.flush()
        self._premises.on_answered()

    def _apply_carried(self, letter: DownLetter[Receipt]) -> None:
        outbox, receipt = self._premises.outbox, letter.data
        if not self._newest.is_newer(letter) or receipt.epoch != outbox.epoch:
            return
        lanes = outbox.lanes()
        above = foreign_marks(outbox, lanes, receipt.marks, receipt.heads)
        if above:
            self._start_over(above)
        else:
            marks: dict[Lane, int] = dict.fromkeys(lanes, 0) | receipt.marks
            outbox.receipt(marks)
            if self.answered:
                self.postman.receipt(marks)
            log.info("line.carried_receipt", marks=receipt.marks)
        self._newest.by_carrier(letter)

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
        if self.link.connected:
            self._begin_hello()
