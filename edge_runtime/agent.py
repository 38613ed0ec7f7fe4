"""The resident agent: wires the parts, keeps them running, and lives as long as it is wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from inspect import isawaitable
from typing import Protocol

from edge_runtime.carriers.service import CarrierService, Surroundings
from edge_runtime.carriers.station import piece_folder
from edge_runtime.chores import Chores, House
from edge_runtime.clock import FlooredClock
from edge_runtime.condition.alarms import Alarms
from edge_runtime.condition.readings import DeviceReadings
from edge_runtime.condition.status import StatusFile
from edge_runtime.conduct.conduct import Conduct
from edge_runtime.errors import EdgeError
from edge_runtime.folder import EdgeFolder
from edge_runtime.handlers import built_in_handlers
from edge_runtime.household import Household, HouseholdHandler, stored_twin
from edge_runtime.identity import Identity, require_enrolled, save_identity
from edge_runtime.letters.dispatch import Dispatcher
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.line import Line, Premises
from edge_runtime.link.link import Endpoint
from edge_runtime.lock import exclusive
from edge_runtime.logs import Log
from edge_runtime.parcels.fetching import PieceFetcher, PieceRefusal, Way
from edge_runtime.ports import Context, LetterHandler
from edge_runtime.settings import EdgeSettings
from edge_runtime.trust.keeper import Treasury, TrustKeeper
from edge_runtime.trust.keyring import Keyring
from edge_runtime.vitals import MAX_MODELS, Vitals
from edge_runtime.worker.client import Worker
from schemas.events import Lane, Message
from schemas.registry import EventReport, Twin

log = Log(__name__)


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
        clock: the system's, seconds since 1970.
        synchronised: whether it follows a time server; None asks the system.

    Raises:
        ConfigError: if the device is not enrolled or its settings make no sense.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        handlers: HandlerFactory = built_in_handlers,
        clock: Callable[[], float] = time.time,
        synchronised: Callable[[], bool] | None = None,
    ) -> None:
        self._settings = settings
        self._folder = EdgeFolder(settings.state)
        self._identity = require_enrolled(self._folder.identity)
        self._endpoint()
        self._readings = DeviceReadings(settings)
        self._make_handlers = handlers
        self._system, self._synchronised = clock, synchronised
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

    @property
    def outbox(self) -> Outbox:
        """Of this device, once `run` has started; may be used from any thread."""
        return self._outbox

    def send(
        self,
        kind: str,
        data: Message,
        *,
        lane: Lane | None = None,
        letter_id: str | None = None,
        latest: str | None = None,
    ) -> str:
        """Store a letter; see `ports.Sender`."""
        stored = self._outbox.add(kind, data, lane or lane_of(kind, data), letter_id, latest=latest)
        if kind == "report":
            self._chores.beat_now()  # which models run may have changed, and lists of devices show heartbeats
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
        self._alarms = Alarms(self.send)
        self._inbox = Inbox(folder.inbox, self._past_s)
        self._clock = FlooredClock(self._inbox.time_floor, self._system, self._synchronised)
        self._outbox = Outbox(folder.outbox, settings.outbox, lambda: self._clock.now().timestamp(), sends=True)
        self._keyring = Keyring(folder.trust)
        self._twin = stored_twin(self._inbox)
        self._restarts = self._inbox.recall("starts", int, 0)
        self._inbox.remember("starts", str(self._restarts + 1))
        self._jobs, self._heavy_jobs = Worker(settings.worker_idle_s), Worker(settings.worker_idle_s)
        self._dispatcher = Dispatcher(self._inbox, self._alarms.handler_failed)
        self._pieces = piece_folder(folder, settings.carriers)
        self._parcels = PieceFetcher(self, self._pieces, way=self._way())
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
                on_piece=lambda raw: self._parcel(self._parcels.received(raw)),
                on_slice=lambda raw: self._parcel(self._parcels.received_slice(raw)),
                report=self._alarms.report,
                unexpected=self._alarms.unexpected,
                on_bundle=self._bundle,
                granted=lambda: self._conduct.grant(),  # noqa: PLW0108 - it looks at the line
            )
        )
        self._conduct = Conduct(settings, self._readings, lambda: self._twin, self._line.measured)
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
            lambda: folder.models(MAX_MODELS),
        )
        self._parts = self._make_handlers(self._context())
        self._dispatcher.register(self._parts)
        self._dispatcher.register([HouseholdHandler(self._household())])
        self._carriers = CarrierService(self._surroundings()) if settings.carriers.enabled else None
        self._chores = Chores(self._house())

    def _house(self) -> House:
        vitals = Vitals(
            line=self._line,
            conduct=self._conduct,
            outbox=self._outbox,
            keyring=self._keyring,
            clock=self._clock,
            readings=self._readings,
            parts=self._parts,
            identity=lambda: self._identity,
            url=lambda: self._settings.url or self._identity.url,
            restarts=self._restarts,
            carriers=self._carriers,
        )
        return House(
            settings=self._settings,
            outbox=self._outbox,
            inbox=self._inbox,
            clock=self._clock,
            line=self._line,
            readings=self._readings,
            vitals=vitals,
            status=StatusFile(self._folder.status),
            alarms=self._alarms,
            identity=lambda: self._identity,
            conduct=self._conduct,
            send=self.send,
        )

    async def _live(self) -> None:
        # What cannot be taken up now is taken up at the next start.
        for part in self._parts:
            await self._step(f"resume {type(part).__name__}", part.resume)
        await self._step("resume letters", self._line.mailroom.resume)
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
            self._chores.start(group)
            if self._carriers is not None:
                group.create_task(self._carriers.run(), name="carriers")

    async def _close(self) -> None:
        parts = [(f"close {type(part).__name__}", part.close) for part in self._parts if hasattr(part, "close")]
        jobs = [("close the worker", self._jobs.close), ("close the heavy worker", self._heavy_jobs.close)]
        try:
            for work, step in [("close letters", self._dispatcher.close), *parts, *jobs]:
                await self._step(work, step)
        finally:
            # Whoever is cancelled meanwhile still brings letters in memory to disk, or names them.
            await self._step("write status", self._chores.write_status)
            if self._carriers is not None:
                await self._step("close carriers", self._carriers.close)
            await self._step("close the outbox", self._outbox.close)
            await self._step("close the inbox", self._inbox.close)
        log.info("agent.stopped", device=str(self._identity.address))

    async def _step(self, work: str, step: Callable[[], object]) -> None:
        """Do it; if it fails, that is a problem in the status, and what comes next is done all the same."""
        try:
            done = step()
            if isawaitable(done):
                await done
        except (EdgeError, OSError) as error:
            # On a disk that cannot be written, above all.
            self._alarms.problems[work] = str(error)
            log.error("agent.step_failed", work=work, message=str(error))
        except Exception as error:  # noqa: BLE001 - told with its place
            self._alarms.unexpected(work, error)

    def _answered(self) -> None:
        self._chores.look_now()
        self._parcels.connected()
        self._chores.tell_losses()
        self._chores.beat_now()
        self._chores.status_now()

    def _way(self) -> Way:
        return Way(
            granted_bytes=lambda: self._conduct.decisions().pieces_bytes,
            receiving=lambda: self._line.link.receiving,
            round_trip_s=lambda: self._line.link.measured().round_trip_s or 0.0,
        )

    def _past_s(self) -> float:
        """For how long ids are kept: a clock that runs ahead must not make the inbox forget them."""
        return (self._clock.certainly_past() or self._clock.now()).timestamp()

    def _parcel(self, refusal: PieceRefusal | None) -> None:
        if refusal is not None:
            self._alarms.piece_refused(refusal)

    def _bundle(self, frame: bytes) -> None:
        if self._carriers is not None:
            self._carriers.down(frame)

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            settings=self._settings,
            folder=self._folder,
            line=self._line,
            outbox=self._outbox,
            inbox=self._inbox,
            keyring=self._keyring,
            clock=self._clock,
            pieces=self._pieces,
            identity=lambda: self._identity,
            choose=self._conduct.choice,
            send=lambda kind, data, letter_id: self.send(kind, data, letter_id=letter_id),
            report=self._alarms.report,
        )

    def _welcomed(self, identity: Identity) -> None:
        save_identity(self._folder.identity, identity)
        self._identity = identity
        log.info("credentials.renewed")
        self._line.link.reconnect()

    def _twin_changed(self, twin: Twin) -> None:
        self._twin = twin
        self._chores.look_now()
        self._chores.beat_now()

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


def lane_of(kind: str, data: Message) -> Lane:
    """The lane that a letter travels in unless told otherwise."""
    if kind == "enrol" or (isinstance(data, EventReport) and data.severity == "high"):
        return "control"
    return "bulk" if kind == "bundle" else "normal"
