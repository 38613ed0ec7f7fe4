"""The resident agent: wires the parts, keeps them running, and lives as long as it is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from inspect import isawaitable
from typing import Any, Protocol

from edge_runtime.budget import Budget
from edge_runtime.clock import FlooredClock
from edge_runtime.errors import EdgeError, OutboxError
from edge_runtime.folder import EdgeFolder
from edge_runtime.handlers import built_in_handlers
from edge_runtime.household import OFFER, Household, HouseholdHandler, enrol_letter, offer, stored_twin
from edge_runtime.identity import Identity, require_enrolled, save_identity
from edge_runtime.letters.dispatch import Dispatcher
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.line import Line, Premises
from edge_runtime.link import Endpoint
from edge_runtime.lock import exclusive
from edge_runtime.logs import Log
from edge_runtime.parcels import PieceFetcher
from edge_runtime.policy import heartbeat_interval_s
from edge_runtime.ports import Context, LetterHandler
from edge_runtime.readings import DeviceReadings
from edge_runtime.settings import EdgeSettings
from edge_runtime.status import StatusFile
from edge_runtime.trust.keeper import Treasury, TrustKeeper
from edge_runtime.trust.keyring import Keyring
from edge_runtime.vitals import MAX_MODELS, Vitals
from edge_runtime.worker.client import Worker
from schemas.errors import MessageError
from schemas.events import DownLetter, Lane, Message
from schemas.registry import EventReport, Heartbeat, Twin

log = Log(__name__)

HOUSEKEEPING_S = 30.0
STATUS_S = 2.0
RENEWAL_CHECK_S = 60.0
RENEW_AGAIN_S = 3_600.0
OFFER_CHECK_S = 60.0
PIECE_REPORTS_PER_MINUTE = 10
_MAX_LINE = 512


class Part(LetterHandler, Protocol):
    """A handler of letters as the agent runs it; may have `served()` or `marks()` for the heartbeat, and `close()`."""

    async def resume(self) -> None:
        """Called once at start, before letters."""


HandlerFactory = Callable[[Context], Sequence[Part]]


class Agent:
    """One device. Also the `ports.Sender` of its parts.

    Args:
        settings: with absolute paths.
        handlers: makes the parts that act on letters.

    Raises:
        ConfigError: if the device is not enrolled or its settings make no sense.
    """

    def __init__(self, settings: EdgeSettings, handlers: HandlerFactory = built_in_handlers) -> None:
        self._settings = settings
        self._folder = EdgeFolder(settings.state)
        self._identity = require_enrolled(self._folder.identity)
        self._endpoint()
        self._readings = DeviceReadings(settings)
        self._make_handlers = handlers
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`.

        Args:
            started: called once the folder is locked and the databases are open.

        Raises:
            ConfigError: if another agent runs on the same folder.
            OutboxError: if the databases cannot be opened.
        """
        self._loop = asyncio.get_running_loop()
        with exclusive(self._folder.lock):
            self._open()
            started()
            try:
                await self._live()
            finally:
                await self._close()

    def stop(self) -> None:
        """End `run`; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    def wake(self) -> None:
        """A letter was put into the outbox by somebody else in this process; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._line.postman.wake)

    def send(self, kind: str, data: Message, *, lane: Lane | None = None, letter_id: str | None = None) -> str:
        """Store a letter; see `ports.Sender`."""
        stored = self._outbox.add(kind, data, lane or lane_of(kind, data), letter_id)
        if kind == "report":
            self._beat_now.set()  # which models run may have changed, and lists of devices show heartbeats
        self.wake()
        return stored

    def publish_state(self, kind: str, data: Message) -> None:
        """Send a state message if connected; see `ports.Sender`."""
        self._line.send_state(kind, data)

    def send_parcel(self, kind: str, raw: bytes) -> bool:
        """Send a parcel; see `ports.Sender`."""
        return self._line.send_parcel(kind, raw)

    def _open(self) -> None:
        folder, settings = self._folder, self._settings
        self._inbox = Inbox(folder.inbox, time.time)
        self._clock = FlooredClock(self._inbox.time_floor)
        self._outbox = Outbox(folder.outbox, settings.outbox, lambda: self._clock.now().timestamp())
        self._keyring = Keyring(folder.trust)
        self._twin = stored_twin(self._inbox)
        self._restarts = int(self._inbox.fact("starts") or 0)
        self._inbox.remember("starts", str(self._restarts + 1))
        self._jobs, self._heavy_jobs = Worker(settings.worker_idle_s), Worker(settings.worker_idle_s)
        self._dispatcher = Dispatcher(self._inbox, self._handler_failed)
        self._parcels = PieceFetcher(self)
        self._piece_budget = Budget(PIECE_REPORTS_PER_MINUTE)
        self._beat_now = asyncio.Event()
        self._status_now = asyncio.Event()
        self._problems: dict[str, str] = {}
        self._status = StatusFile(folder.status)
        self._line = Line(
            Premises(
                outbox=self._outbox,
                inbox=self._inbox,
                keyring=self._keyring,
                clock=self._clock,
                dispatcher=self._dispatcher,
                identity=lambda: self._identity,
                endpoint=self._endpoint,
                on_answered=self._answered,
                on_piece=self._piece,
                report=self._report,
            )
        )
        self._line.trust = TrustKeeper(
            Treasury(
                folder=folder,
                inbox=self._inbox,
                keyring=self._keyring,
                jobs=self._jobs,
                identity=lambda: self._identity,
                now=self._clock.now,
                want=lambda raw: self.send_parcel("want", raw),
                refreshed=self._line.trust_looked_at,
            ),
            self._models,
        )
        self._parts = self._make_handlers(self._context())
        self._dispatcher.register(self._parts)
        self._dispatcher.register([HouseholdHandler(self._household())])
        self._vitals = Vitals(
            line=self._line,
            outbox=self._outbox,
            keyring=self._keyring,
            clock=self._clock,
            readings=self._readings,
            parts=self._parts,
            identity=lambda: self._identity,
            url=lambda: self._settings.url or self._identity.url,
            restarts=self._restarts,
        )

    async def _live(self) -> None:
        for part in self._parts:
            await part.resume()
        self._line.mailroom.resume()
        work = asyncio.create_task(self._serve(), name="agent")
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
            self._line.farewell()
        finally:
            stopping.cancel()
            self._line.link.close()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _serve(self) -> None:
        log.info("agent.started", device=str(self._identity.address), restarts=self._restarts)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._line.run(), name="line")
            group.create_task(self._beat(), name="heartbeat")
            group.create_task(self._every(HOUSEKEEPING_S, self._tidy), name="housekeeping")
            group.create_task(self._every(STATUS_S, self._write_status, self._status_now), name="status")
            group.create_task(self._every(RENEWAL_CHECK_S, self._renew), name="renewal")
            group.create_task(self._every(OFFER_CHECK_S, self._tell_offer), name="offer")

    async def _close(self) -> None:
        await self._dispatcher.close()
        for part in self._parts:
            closed = part.close() if hasattr(part, "close") else None
            if isawaitable(closed):
                await closed
        await self._jobs.close()
        await self._heavy_jobs.close()
        try:
            self._write_status()
        except (EdgeError, OSError) as error:
            log.error("status.not_written", message=str(error))
        self._outbox.close()
        self._inbox.close()
        log.info("agent.stopped", device=str(self._identity.address))

    async def _every(self, interval_s: float, work: Callable[[], object], now: asyncio.Event | None = None) -> None:
        while True:
            try:
                work()
                self._problems.pop(work.__name__, None)
            except (EdgeError, OSError) as error:
                # A full disk, above all; the next turn tries again, and status shows it.
                self._problems[work.__name__] = str(error)
                log.error("periodic.failed", work=work.__name__, message=str(error))
            await _pause(interval_s, now)

    async def _beat(self) -> None:
        while True:
            await _pause(heartbeat_interval_s(self._settings.heartbeat_s, self._twin), self._beat_now)
            try:
                self._send_heartbeat(self._vitals.heartbeat())
                self._problems.pop("heartbeat", None)
            except (EdgeError, MessageError) as error:
                self._problems["heartbeat"] = str(error)
                log.error("heartbeat.failed", message=str(error))

    def _send_heartbeat(self, heartbeat: Heartbeat) -> None:
        try:
            self._line.send_state("heartbeat", heartbeat)
        except MessageError:
            # What a server needs to know of a device's life fits; its details may not.
            self._line.send_state(
                "heartbeat", heartbeat.model_copy(update={"samples": {}, "models": heartbeat.models[:4]})
            )

    def _answered(self) -> None:
        self._parcels.connected()
        self._beat_now.set()
        self._status_now.set()

    def _piece(self, raw: bytes) -> None:
        refusal = self._parcels.received(raw)
        if refusal is None:
            return
        log.warning("piece.refused", reason=refusal.reason, message=refusal.message)
        if self._piece_budget.take(time.monotonic()):
            self._report(
                EventReport(
                    name="piece.refused",
                    severity="high",
                    reason=refusal.reason,
                    message=refusal.message[:_MAX_LINE],
                    details=dict(refusal.details),
                )
            )

    def _handler_failed(self, letter: DownLetter[Any], kind: str, error: Exception) -> None:
        self._report(
            EventReport(
                name="letter.failed",
                severity="warning",
                reason=error.reason if isinstance(error, EdgeError) else "failed",
                message=f"{kind} letter {letter.id}: {error}"[:_MAX_LINE],
                details={"letter": letter.id, "kind": kind},
            )
        )

    def _report(self, event: EventReport) -> None:
        try:
            self.send("event", event)
        except OutboxError as error:
            self._problems["outbox"] = str(error)
            log.error("outbox.failed", reason=error.reason, message=str(error), lost=event.name)

    def _tidy(self) -> None:
        self._outbox.trim()
        self._inbox.trim()

    def _renew(self) -> None:
        credentials, now = self._identity.credentials, self._clock.now()
        if credentials is None or now < credentials.renew_at():
            return
        if any("token" not in json.loads(data) for _, data in self._outbox.waiting("enrol")):
            return  # asked, and still on its way
        last = float(self._inbox.fact("renewal_asked") or 0)
        if abs(now.timestamp() - last) < RENEW_AGAIN_S:
            return
        self._inbox.remember("renewal_asked", str(now.timestamp()))
        self.send("enrol", enrol_letter(self._identity, self._readings.capabilities()))
        log.info("credentials.renewal_asked")

    def _tell_offer(self) -> None:
        """Tell the platform what came or went in the owner's settings, at start or while running."""
        unreadable = self._readings.unreadable()
        problem = f"no `.npz` with an array `x`: {', '.join(unreadable)}"[:_MAX_LINE] if unreadable else None
        if problem is None:
            self._problems.pop("datasets", None)
        elif self._problems.get("datasets") != problem:
            self._problems["datasets"] = problem
            log.warning("datasets.unreadable", message=problem)
        capabilities = self._readings.capabilities()
        now, told = offer(capabilities), self._inbox.fact(OFFER)
        if now == told:
            return
        if told is not None:
            self.send("enrol", enrol_letter(self._identity, capabilities))
            log.info("offer.told", datasets=capabilities.datasets, runners=capabilities.runners)
        self._inbox.remember(OFFER, now)

    def _welcomed(self, identity: Identity) -> None:
        save_identity(self._folder.identity, identity)
        self._identity = identity
        log.info("credentials.renewed")
        self._line.link.reconnect()

    def _twin_changed(self, twin: Twin) -> None:
        self._twin = twin
        self._beat_now.set()

    def _household(self) -> Household:
        return Household(
            inbox=self._inbox,
            outbox=self._outbox,
            identity=lambda: self._identity,
            welcomed=self._welcomed,
            twin_changed=self._twin_changed,
            resend_from=self._line.postman.resend_from,
            now=self._clock.now,
        )

    def _context(self) -> Context:
        return Context(
            address=self._identity.address,
            platform=self._identity.platform,
            folder=self._folder,
            settings=self._settings,
            clock=self._clock,
            sender=self,
            jobs=self._jobs,
            heavy_jobs=self._heavy_jobs,
            parcels=self._parcels,
            readings=self._readings,
            wishes=lambda: self._twin,
        )

    def _endpoint(self) -> Endpoint:
        settings, identity = self._settings, self._identity
        return Endpoint.parse(settings.url or identity.url, identity.ca_pem, settings.tls_hostname)

    def _models(self) -> list[str]:
        if not self._folder.slots.is_dir():
            return []
        return sorted(path.name for path in self._folder.slots.iterdir() if path.is_dir())[:MAX_MODELS]

    def _write_status(self) -> None:
        self._status.write(self._vitals.status(self._problems))


async def _pause(interval_s: float, now: asyncio.Event | None) -> None:
    """Wait, or until `now` is set."""
    if now is None:
        await asyncio.sleep(interval_s)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(interval_s):
            await now.wait()
    now.clear()


def lane_of(kind: str, data: Message) -> Lane:
    """The lane that a letter travels in unless told otherwise (protocols, section 0)."""
    if kind == "enrol" or (isinstance(data, EventReport) and data.severity == "high"):
        return "control"
    return "bulk" if kind == "bundle" else "normal"
