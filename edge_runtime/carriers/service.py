"""Store and forward inside the agent: opens what arrives, hands in what it carries, looks after the synced folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from edge_runtime.cancelling import end_if_cancelled
from edge_runtime.carriers.folder import FolderCarrier
from edge_runtime.carriers.handing import Counter, HandingIn
from edge_runtime.carriers.keeping import keep
from edge_runtime.carriers.opening import Desk, Opening
from edge_runtime.carriers.pieces import PieceFolder
from edge_runtime.carriers.reports import Imported
from edge_runtime.carriers.station import Ground, open_station
from edge_runtime.clock import FlooredClock
from edge_runtime.conduct.policy import Choice
from edge_runtime.errors import EdgeError
from edge_runtime.folder import EdgeFolder
from edge_runtime.identity import Identity
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.line import Line
from edge_runtime.logs import Log
from edge_runtime.settings import EdgeSettings
from edge_runtime.trust.keyring import Keyring
from schemas.errors import ContractError
from schemas.events import LANES, Lane, Message
from schemas.ids import Address
from schemas.registry import EventReport

if TYPE_CHECKING:
    from edge_runtime.carriers.neighbours import Neighbours

log = Log(__name__)

TURN_S = 2.0
TIDY_S = 30.0
_STARTING = Choice("wait", "starting")


class Choose(Protocol):
    """`Conduct.choice`."""

    def __call__(self, lane: Lane, waiting_bytes: int, *, neighbours: int, folder: bool) -> Choice:
        """Which way the letters of a lane go now."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the service asks of the agent.

    Attributes:
        choose: which way a lane's letters go now.
        send: stores a letter with a given id.
    """

    settings: EdgeSettings
    folder: EdgeFolder
    line: Line
    outbox: Outbox
    inbox: Inbox
    keyring: Keyring
    clock: FlooredClock
    pieces: PieceFolder
    identity: Callable[[], Identity]
    choose: Choose
    send: Callable[[str, Message, str], object]
    report: Callable[[EventReport], None]


class CarrierService:
    """One device's part in store and forward.

    Attributes:
        choice: the way that this device's own letters take now, and why.

    Raises:
        OutboxError: if the store cannot be opened.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._neighbours: Neighbours | None = None
        self._problems: dict[str, str] = {}
        self._folder_exchange: dict[str, Any] | None = None
        self._folder_there = False
        self.choice = _STARTING
        settings = around.settings.carriers
        self.station = open_station(
            Ground(
                folder=around.folder,
                settings=settings,
                outbox=around.outbox,
                inbox=around.inbox,
                keyring=around.keyring,
                clock=around.clock,
                identity=around.identity,
                trust=around.line.trust.state,
                refused=around.line.states.pending_gots,
                linked=self.linked,
                detour=lambda: self.choice.transport in {"neighbour", "folder"},
                arrived=self._arrived,
                news=self._news,
            )
        )
        self._opening = Opening(Desk(self.station.custodian, _Reader(around.line), around.identity, around.report))
        self._handing = HandingIn(
            Counter(
                store=self.station.store,
                outbox=around.outbox,
                linked=self.linked,
                send=around.send,
                outbox_bytes=around.settings.outbox.max_bytes,
            )
        )
        self._folder = None if settings.folder is None else FolderCarrier(self.station.custodian, None, settings.folder)

    def linked(self) -> bool:
        """Whether what is for the platform can go there directly."""
        return self._around.line.answered and self.choice.transport != "neighbour"

    def down(self, frame: bytes) -> None:
        """The platform hands over a fragment."""
        try:
            self.station.custodian.down(frame)
            self._problems.pop("down", None)
        except ContractError as error:
            log.warning("fragment.bad", reason=error.reason, message=str(error))
        except EdgeError as error:
            self._problems["down"] = str(error)
            log.error("carriers.failed", work="down", message=str(error))

    async def run(self) -> None:
        """Serve until cancelled."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            works: dict[str, Callable[[], Awaitable[None]]] = {
                "carriers": partial(self._every, TURN_S, self._turn, self._wake),
                "carriers tidy": partial(self._every, TIDY_S, self._tidy),
            }
            if self._folder is not None:
                poll_s = self._around.settings.carriers.folder_poll_s
                works["carriers folder"] = partial(self._every, poll_s, self._exchange_folder)
            if self._around.settings.neighbours.enabled:
                self._neighbours = self._make_neighbours()
                works["neighbours"] = self._neighbours.run
            for name, work in works.items():
                group.create_task(keep(name, work, self._problems), name=name)

    def close(self) -> None:
        """Close the file."""
        self.station.close()

    def status(self) -> dict[str, Any]:
        """For `status.json`."""
        return {
            **self.station.custodian.custody(),
            "transport": self.choice.transport,
            "reason": self.choice.reason,
            "neighbours": self._neighbours.status() if self._neighbours is not None else None,
            "folder": str(self._folder.directory) if self._folder is not None else None,
            "folder_exchange": self._folder_exchange,
        }

    def problems(self) -> list[str]:
        """What does not work now."""
        found = [*self._problems.values(), self.station.custodian.packer.problem, self._opening.problem]
        if self._neighbours is not None:
            found.append(self._neighbours.problem)
        return [problem for problem in found if problem]

    async def _every(self, interval_s: float, work: Callable[[], Any], now: asyncio.Event | None = None) -> None:
        while True:
            try:
                done = work()
                if asyncio.iscoroutine(done):
                    await done
                self._problems.pop(work.__name__, None)
            except (EdgeError, ContractError, OSError) as error:
                # A full disk or a stick that was pulled; the next turn tries again, and status shows it.
                if self._problems.get(work.__name__) != str(error):
                    log.error("carriers.failed", work=work.__name__, message=str(error))
                self._problems[work.__name__] = str(error)
                end_if_cancelled()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await (now or asyncio.Event()).wait()
            if now is not None:
                now.clear()

    async def _turn(self) -> None:
        self._choose()
        await self._opening.run()
        self._handing.run()

    def _choose(self) -> None:
        around = self._around
        # A device that has nothing to say still asks what is there for it.
        choice = around.choose(
            self._lane(),
            max(1, around.outbox.summary().waiting.bytes),
            neighbours=len(self._neighbours.in_sight()) if self._neighbours is not None else 0,
            folder=self._folder_there,
        )
        if choice.transport != self.choice.transport:
            log.info("carriers.way", transport=choice.transport, reason=choice.reason)
            # The reason stays the one of that moment: it is news for the status once, not every two seconds.
            self.choice = choice
            self._news(None)
        elif self.choice is _STARTING:
            self.choice = choice

    def _lane(self) -> Lane:
        """The most urgent that waits."""
        lanes = self._around.outbox.lanes()
        return next((lane for lane in LANES if lanes.get(lane, (0, 0))[0] > lanes.get(lane, (0, 0))[1]), "normal")

    async def _exchange_folder(self) -> None:
        folder = self._folder
        if folder is None:
            return
        # In threads: a folder may lie on a slow stick or on a network, and that may be gone.
        try:
            self._folder_there = await asyncio.to_thread(folder.directory.is_dir)
        except OSError:
            self._folder_there = False
            raise
        if not self._folder_there:
            return
        taken, failed = Imported(), None
        try:
            if await asyncio.to_thread(folder.root.is_dir):
                taken = await asyncio.to_thread(folder.take)
        except EdgeError as error:
            # What cannot be read there keeps nothing from being written.
            failed = error
        written = await asyncio.to_thread(folder.export, own=self.choice.transport == "folder")
        if failed is not None:
            raise failed
        self._folder_exchange = {
            "at": self._around.clock.now().isoformat(timespec="seconds"),
            "taken": taken.arrived + taken.carried,
            "written": written.fragments,
            "refused": taken.refused,
            "left": taken.left,
        }

    def _tidy(self) -> None:
        store = self.station.store
        store.drop([one.key for one in store.carried() if one.expired])
        self.station.custodian.packer.tidy(linked=self.linked())
        self._around.pieces.trim()

    def _arrived(self) -> None:
        # The synced folder is read in a thread of its own, which an event of the loop does not hear.
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    def _news(self, but: Address | None) -> None:
        self._wake.set()
        if self._neighbours is not None:
            self._neighbours.wake(but)

    def _make_neighbours(self) -> Neighbours:
        # 5 MB with zeroconf, which most devices do not need.
        from edge_runtime.carriers.neighbours import Home, Neighbours  # noqa: PLC0415

        around, custodian = self._around, self.station.custodian
        return Neighbours(
            around.settings.neighbours,
            Home(
                identity=around.identity,
                now=around.clock.now,
                talk=lambda peer: custodian.meet(peer.address, peer.key),
            ),
        )


class _Reader:
    """Implements `opening.Reader` with the agent's line."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def take_trust(self, pack: bytes) -> bool:
        return await self._line.trust.look(pack)

    def take_receipt(self, raw: bytes) -> None:
        self._line.take_receipt(raw)

    def take_letter(self, kind: str, raw: bytes) -> bool:
        mailroom = self._line.mailroom
        mailroom.problem = None
        mailroom.receive(kind, raw)
        return mailroom.problem is None

    def trust_version(self) -> object:
        return self._line.trust.state()
