"""One simulated device: the real outbox, postman, line and link of the edge runtime, and a switch for its network."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

from edge_runtime.clock import FlooredClock
from edge_runtime.errors import WorkerError
from edge_runtime.folder import EdgeFolder
from edge_runtime.identity import Identity
from edge_runtime.letters.dispatch import Dispatcher
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.line import Line, Premises
from edge_runtime.link.link import Endpoint
from edge_runtime.logs import Log
from edge_runtime.settings import OutboxLimits
from edge_runtime.trust.keeper import Treasury, TrustKeeper
from edge_runtime.trust.keyring import Keyring
from edge_runtime.trust.record import TrustRecord, write_record
from schemas.depot import TrustState
from schemas.events import DownLetter, Untyped
from schemas.registry import EventReport

log = Log(__name__)

KIND = "sample"


class SimulatedDevice:
    """Has everything of an agent that letters up depend on, and nothing else: no probes, models or tasks."""

    def __init__(self, folder: Path, identity: Identity, trust: TrustRecord) -> None:
        self._folder = place = EdgeFolder(folder)
        place.trust.mkdir(parents=True, exist_ok=True)
        write_record(place.trust, trust)
        self.identity = identity
        self._head = trust.accepted
        self._inbox = Inbox(place.inbox, time.time)
        self._outbox = Outbox(place.outbox, OutboxLimits(), time.time)
        self._dispatcher = Dispatcher(self._inbox, _ignore_failure)
        endpoint = Endpoint.parse(identity.url, identity.ca_pem, None)
        self._premises = Premises(
            outbox=self._outbox,
            inbox=self._inbox,
            keyring=Keyring(place.trust),
            clock=FlooredClock(self._inbox.time_floor),
            dispatcher=self._dispatcher,
            identity=lambda: identity,
            endpoint=lambda: endpoint,
            on_answered=lambda: None,
            on_piece=_ignore_piece,
            report=_log_report,
            unexpected=_log_unexpected,
        )
        self._line: Line | None = None
        self._work: asyncio.Task[None] | None = None

    def write(self) -> str:
        """Hand a letter to the outbox, as a program on the device does; returns its id once it is on disk."""
        letter_id = self._outbox.add(KIND, Untyped.model_validate({"simulated": True}), "normal")
        if self._line is not None:
            self._line.postman.wake()
        return letter_id

    async def connect(self) -> None:
        """The network is there."""
        await self.disconnect()
        line = Line(self._premises)
        treasury = Treasury(
            folder=self._folder,
            inbox=self._inbox,
            keyring=self._premises.keyring,
            jobs=_NoJobs(),
            identity=self._premises.identity,
            now=self._premises.clock.now,
            want=lambda raw: line.send_parcel("want", raw),
            refreshed=line.trust_looked_at,
        )
        line.trust = _SettledTrust(treasury, self._head)
        self._line, self._work = line, asyncio.create_task(line.run(), name=str(self.identity.address))

    async def disconnect(self) -> None:
        """The network is gone.

        Raises:
            ExceptionGroup: if the conversation had failed meanwhile.
        """
        line, work = self._line, self._work
        self._line = self._work = None
        if line is None or work is None:
            return
        line.link.close()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    @property
    def waiting(self) -> int:
        """Letters without a receipt."""
        return self._outbox.summary().waiting.letters

    async def close(self) -> None:
        """End it."""
        await self.disconnect()
        await self._dispatcher.close()
        self._outbox.close()
        self._inbox.close()


class _SettledTrust(TrustKeeper):
    """The agent's keeper on a device whose trust is current, so that there is nothing to verify."""

    def __init__(self, treasury: Treasury, head: TrustState) -> None:
        super().__init__(treasury, list)
        self._head = head

    def state(self) -> TrustState:
        """For hello."""
        return self._head

    async def refresh(self, pack: bytes | None) -> None:
        """The depot's answer to hello says that nothing is newer."""


class _NoJobs:
    async def call(self, job: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """No device here works."""
        raise WorkerError(f"run {job} with {len(params)} parameters within {timeout_s:g} s: simulated devices do not")


def _ignore_failure(letter: DownLetter[Any], kind: str, error: Exception) -> None:
    log.error("letter.failed", letter=letter.id, kind=kind, message=str(error))


def _ignore_piece(_raw: bytes) -> None:
    # Nobody asked for any.
    log.debug("piece.ignored")


def _log_report(event: EventReport) -> None:
    log.warning(event.name, reason=event.reason, message=event.message)


def _log_unexpected(work: str, error: Exception) -> None:
    log.unexpected("device.unexpected", error, work=work)
