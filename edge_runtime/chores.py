"""What the agent does again and again: heartbeats, housekeeping, status, renewal of credentials, telling its offer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from edge_runtime.clock import FlooredClock
from edge_runtime.condition.alarms import MAX_LINE, Alarms
from edge_runtime.condition.readings import DeviceReadings
from edge_runtime.condition.status import StatusFile
from edge_runtime.conduct.conduct import LOOK_S, Conduct
from edge_runtime.errors import EdgeError
from edge_runtime.household import OFFER, enrol_letter, offer
from edge_runtime.identity import Identity
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.line import Line
from edge_runtime.logs import Log
from edge_runtime.settings import EdgeSettings
from edge_runtime.vitals import Vitals
from schemas.errors import MessageError
from schemas.events import Message
from schemas.registry import Heartbeat

log = Log(__name__)

HOUSEKEEPING_S = 30.0
STATUS_S = 2.0
RENEWAL_CHECK_S = 60.0
RENEW_AGAIN_S = 3_600.0
OFFER_CHECK_S = 60.0
MAX_AGAIN_S = 300.0
"""A chore that fails as nobody expected is tried again after twice its interval, then later and later, up to this."""


@dataclass(frozen=True, slots=True)
class House:
    """What the chores work on."""

    settings: EdgeSettings
    outbox: Outbox
    inbox: Inbox
    clock: FlooredClock
    line: Line
    readings: DeviceReadings
    vitals: Vitals
    status: StatusFile
    alarms: Alarms
    identity: Callable[[], Identity]
    conduct: Conduct
    send: Callable[[str, Message], str]


class Chores:
    """Runs beside the line. A chore that fails is a problem in the status and is tried again at its next turn."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._beat_now = asyncio.Event()
        self._status_now = asyncio.Event()

    def start(self, group: asyncio.TaskGroup) -> None:
        """Begin all of them."""
        group.create_task(self._beat(), name="heartbeat")
        group.create_task(self._every(LOOK_S, self._look), name="conduct")
        group.create_task(self._every(HOUSEKEEPING_S, self._tidy), name="housekeeping")
        group.create_task(self._every(HOUSEKEEPING_S, self._report_losses), name="losses")
        group.create_task(self._every(STATUS_S, self.write_status, self._status_now), name="status")
        group.create_task(self._every(RENEWAL_CHECK_S, self._renew), name="renewal")
        group.create_task(self._every(OFFER_CHECK_S, self._tell_offer), name="offer")

    def beat_now(self) -> None:
        """There is news that lists of devices show."""
        self._beat_now.set()

    def status_now(self) -> None:
        """There is news for people on the device."""
        self._status_now.set()

    def look_now(self) -> None:
        """Decide anew: what the decisions come from has changed."""
        self._try(self._look)

    def tell_losses(self) -> None:
        """Tell now what the outbox gave up since it was last told."""
        self._try(self._report_losses)

    def write_status(self) -> None:
        """Write `status.json` if there is news.

        Raises:
            EdgeError: if a database cannot be read.
            OSError: if the disk does not do its part.
        """
        vitals = self._house.vitals
        self._house.status.write(vitals.status(self._house.alarms.problems), vitals.figures())

    async def _every(self, interval_s: float, work: Callable[[], object], now: asyncio.Event | None = None) -> None:
        pause_s = interval_s
        while True:
            pause_s = interval_s if self._try(work) else min(2 * pause_s, MAX_AGAIN_S)
            await _pause(pause_s, now)

    def _try(self, work: Callable[[], object]) -> bool:
        """Do it; False if it failed as nobody expected."""
        try:
            work()
            self._house.alarms.problems.pop(work.__name__, None)
        except (EdgeError, OSError) as error:
            # A full disk, above all; the next turn tries again, and status shows it.
            self._failed(work.__name__, "periodic.failed", error)
        except Exception as error:
            # A torn row, say. The agent goes on: it would meet the same again at every start.
            if self._is_news(work.__name__, _unexpected(error)):
                log.exception("periodic.unexpected", work=work.__name__)
            return False
        return True

    def _failed(self, work: str, event: str, error: Exception) -> None:
        if self._is_news(work, str(error)):
            log.error(event, work=work, message=str(error))

    def _is_news(self, work: str, message: str) -> bool:
        """Whether to log it: once, since the log may be on the disk that is full."""
        problems = self._house.alarms.problems
        before, problems[work] = problems.get(work), message
        return before != message

    async def _beat(self) -> None:
        house = self._house
        while True:
            await _pause(house.conduct.decisions().heartbeat_s, self._beat_now)
            try:
                self._send_heartbeat(house.vitals.heartbeat())
                house.alarms.problems.pop("heartbeat", None)
            except (EdgeError, MessageError) as error:
                self._failed("heartbeat", "heartbeat.failed", error)
            except Exception as error:
                if self._is_news("heartbeat", _unexpected(error)):
                    log.exception("heartbeat.unexpected")

    def _send_heartbeat(self, heartbeat: Heartbeat) -> None:
        line = self._house.line
        try:
            line.send_state("heartbeat", heartbeat)
        except MessageError:
            # What a server needs to know of a device's life fits; its details may not.
            line.send_state("heartbeat", heartbeat.model_copy(update={"samples": {}, "models": heartbeat.models[:4]}))

    def _look(self) -> None:
        """Decide anew; what was held back may move now."""
        before = self._house.conduct.decisions().bulk
        if self._house.conduct.look().bulk != before:
            self._house.line.postman.wake()

    def _tidy(self) -> None:
        self._house.outbox.trim()
        self._house.inbox.trim()

    def _report_losses(self) -> None:
        if self._house.outbox.report_losses():
            self._house.line.postman.wake()

    def _renew(self) -> None:
        house, identity = self._house, self._house.identity()
        now = house.clock.now()
        if not identity.renewal_due(now, neighbours=house.settings.neighbours.enabled):
            return
        if any("token" not in json.loads(data) for _, data in house.outbox.waiting("enrol")):
            return  # asked, and still on its way
        last = house.inbox.recall("renewal_asked", float, 0.0)
        if abs(now.timestamp() - last) < RENEW_AGAIN_S:
            return
        house.inbox.remember("renewal_asked", str(now.timestamp()))
        house.send("enrol", enrol_letter(identity, house.readings.capabilities()))
        log.info("credentials.renewal_asked")

    def _tell_offer(self) -> None:
        """Tell the platform what came or went in the owner's settings, at start or while running."""
        house, problems = self._house, self._house.alarms.problems
        unreadable = house.readings.unreadable()
        problem = f"no `.npz` with an array `x`: {', '.join(unreadable)}"[:MAX_LINE] if unreadable else None
        if problem is None:
            problems.pop("datasets", None)
        elif problems.get("datasets") != problem:
            problems["datasets"] = problem
            log.warning("datasets.unreadable", message=problem)
        capabilities = house.readings.capabilities()
        now, told = offer(capabilities), house.inbox.fact(OFFER)
        if now == told:
            return
        if told is not None:
            house.send("enrol", enrol_letter(house.identity(), capabilities))
            log.info("offer.told", datasets=capabilities.datasets, runners=capabilities.runners)
        house.inbox.remember(OFFER, now)


def _unexpected(error: Exception) -> str:
    return f"{error!r}"[:MAX_LINE] + "; the log says where; it is tried again"


async def _pause(interval_s: float, now: asyncio.Event | None) -> None:
    """Wait, or until `now` is set."""
    if now is None:
        await asyncio.sleep(interval_s)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(interval_s):
            await now.wait()
    now.clear()
