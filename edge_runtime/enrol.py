"""Enrolment: with a token in hand, become a device of the platform.

Every step can be repeated: the keys are on disk before the first word, the enrol letter is in the outbox, and the
welcome is in the inbox before it is acted on. A crash anywhere is mended by running the same command again.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from edge_runtime.clock import FlooredClock
from edge_runtime.condition.readings import DeviceReadings
from edge_runtime.errors import EnrolError, TrustError
from edge_runtime.folder import EdgeFolder
from edge_runtime.household import OFFER, TWIN, enrol_letter, offer
from edge_runtime.identity import Identity, load_identity, save_identity
from edge_runtime.letters.dispatch import Dispatcher
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.line import Line, Premises
from edge_runtime.link.link import Endpoint
from edge_runtime.lock import exclusive
from edge_runtime.logs import Log
from edge_runtime.settings import EdgeSettings
from edge_runtime.trust.keeper import Treasury, TrustKeeper
from edge_runtime.trust.keyring import Keyring
from edge_runtime.worker.client import Worker
from schemas.events import DownLetter
from schemas.registry import EventReport, Token, Welcome

log = Log(__name__)

TIMEOUT_S = 60.0
_POLL_S = 0.05
_FINAL_TRUST = frozenset({"wrong_root", "wrong_platform", "bad_signature", "rollback", "damaged_record"})
"""Refusals of the trust pack that waiting cannot mend."""


def choose_identity(present: Identity | None, token: Token, *, again: bool) -> Identity:
    """The identity to enrol: a new one, or the one at hand with another token.

    Args:
        present: what the folder holds.
        token: the token to use.
        again: enrol anew although enrolled, with the same keys.

    Raises:
        EnrolError: `already_enrolled` or `other_device`.
    """
    if present is None:
        return Identity.create(token)
    if (present.platform, present.fleet, present.device) != (token.platform, token.fleet, token.device):
        raise EnrolError(
            f"enrol {token.fleet}/{token.device}: this state folder belongs to {present.address} of platform "
            f"{present.platform}; use another folder (`state` in the settings)",
            reason="other_device",
        )
    if present.credentials is not None and not again:
        raise EnrolError(
            f"enrol {present.address}: this device is enrolled already, until "
            f"{present.credentials.expires.isoformat()}; start it with `causeway-edge run`, "
            "or enrol it anew with --again",
            reason="already_enrolled",
        )
    if present.token is not None and present.token.token == token.token:
        return present
    return present.with_token(token)


class Enrolment:
    """One attempt. Also the handler of its welcome."""

    kinds = frozenset({"welcome"})

    def __init__(self, settings: EdgeSettings, identity: Identity) -> None:
        self._settings = settings
        self._folder = EdgeFolder(settings.state)
        self._identity = identity
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

    async def handle(self, letter: DownLetter[Any]) -> None:
        """A welcome has come."""
        welcome: Welcome = letter.data
        if welcome.enrol_id == self._identity.enrol_id and not self._welcome.done():
            self._welcome.set_result(welcome)

    async def run(self, timeout_s: float) -> Identity:
        """Returns the enrolled identity, stored.

        Raises:
            EnrolError: with the registry's reason, or why no answer came.
        """
        folder, settings = self._folder, self._settings
        inbox = Inbox(folder.inbox, time.time)
        clock = FlooredClock(inbox.time_floor, self._system)
        outbox = Outbox(folder.outbox, settings.outbox, lambda: clock.now().timestamp(), sends=True)
        jobs = Worker(settings.worker_idle_s)
        dispatcher = Dispatcher(inbox, _log_failure)
        dispatcher.register([self])
        try:
            self._post(outbox, inbox)
            line = self._line(outbox, inbox, clock, dispatcher, jobs)
            return await self._converse(line, inbox, clock, timeout_s)
        finally:
            await dispatcher.close()
            await jobs.close()
            outbox.close()
            inbox.close()

    def _system(self) -> float:
        """A clock that stands in 2040 would find all metadata expired; the token's own end is later than now."""
        token = self._identity.token
        return min(time.time(), token.expires.timestamp()) if token is not None else time.time()

    def _post(self, outbox: Outbox, inbox: Inbox) -> None:
        """Put the enrol letter into the outbox once, in front of everything that a token may not send."""
        identity = self._identity
        if identity.enrol_id is None:
            letter_id = self._posted(outbox)
            if letter_id is None:
                capabilities = DeviceReadings(self._settings).capabilities()
                inbox.remember(OFFER, offer(capabilities))
                letter_id = outbox.add("enrol", enrol_letter(identity, capabilities), "control")
            identity = identity.model_copy(update={"enrol_id": letter_id})
        save_identity(self._folder.identity, identity)
        self._identity = identity
        if identity.enrol_id is not None and outbox.stands_behind_others(identity.enrol_id):
            outbox.renew_epoch(first=identity.enrol_id)

    def _posted(self, outbox: Outbox) -> str | None:
        """The letter that a crash kept from being noted."""
        assert self._identity.token is not None
        for letter_id, data in outbox.waiting("enrol"):
            if json.loads(data).get("token") == self._identity.token.token:
                return letter_id
        return None

    def _line(self, outbox: Outbox, inbox: Inbox, clock: FlooredClock, dispatcher: Dispatcher, jobs: Worker) -> Line:
        settings, keyring = self._settings, Keyring(self._folder.trust)
        endpoint = Endpoint.parse(settings.url or self._identity.url, self._identity.ca_pem, settings.tls_hostname)
        line = Line(
            Premises(
                outbox=outbox,
                inbox=inbox,
                keyring=keyring,
                clock=clock,
                dispatcher=dispatcher,
                identity=lambda: self._identity,
                endpoint=lambda: endpoint,
                on_answered=lambda: None,
                on_piece=_ignore_piece,
                report=_log_report,
                unexpected=_log_unexpected,
            ),
            bootstrap=True,
        )
        line.trust = TrustKeeper(
            Treasury(
                folder=self._folder,
                inbox=inbox,
                keyring=keyring,
                jobs=jobs,
                identity=lambda: self._identity,
                now=clock.now,
                want=lambda raw: line.send_parcel("want", raw),
                refreshed=line.trust_looked_at,
            ),
            list,
        )
        return line

    async def _converse(self, line: Line, inbox: Inbox, clock: FlooredClock, timeout_s: float) -> Identity:
        line.mailroom.resume()
        work = asyncio.create_task(line.run(), name="enrolment")
        try:
            welcome = await self._wait(line, work, timeout_s)
            identity = self._identity.welcomed(welcome, clock.now())
            self._identity = identity
            # The registry's floors: fresh metadata from a thief of the depot's keys ends here.
            await line.trust.refresh(None)
            save_identity(self._folder.identity, identity)
            if welcome.twin is not None:
                inbox.remember(TWIN, welcome.twin.model_dump_json(exclude_none=True))
            line.farewell()
            return identity
        except TrustError as error:
            raise EnrolError(str(error), reason=error.reason) from error
        finally:
            line.link.close()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _wait(self, line: Line, work: asyncio.Task[None], timeout_s: float) -> Welcome:
        deadline = time.monotonic() + timeout_s
        while not self._welcome.done():
            if work.done():
                await work
            error = line.trust.error
            if error is not None and error.reason in _FINAL_TRUST:
                raise error
            if line.link.refused:
                raise EnrolError(
                    f"enrol {self._identity.address}: the server refused the token's credentials; it was revoked or "
                    "has expired; get a new one with `causeway device enrol`",
                    reason="credentials_refused",
                )
            if time.monotonic() > deadline:
                raise EnrolError(self._silence(line, timeout_s), reason="unreachable")
            await asyncio.wait({self._welcome}, timeout=_POLL_S)
        return self._welcome.result()

    def _silence(self, line: Line, timeout_s: float) -> str:
        what = f"enrol {self._identity.address}: no welcome within {timeout_s:g} s: "
        if line.link.problem is not None:
            step = "see that the platform is up and reachable, then run the same command again"
            return f"{what}{line.link.problem}; {step}"
        if line.trust.error is not None:
            return what + f"the trust metadata was refused: {line.trust.error}"
        if not line.answered:
            return what + "the platform does not answer hello; see that its courier and depot run"
        return what + "the letter was delivered, but the registry has not answered; run the same command again later"


async def enrol(settings: EdgeSettings, token: Token, *, again: bool = False, timeout_s: float = TIMEOUT_S) -> Identity:
    """Enrol the device that a token names; its identity is stored when this returns.

    Raises:
        EnrolError: `already_enrolled`, `other_device`, `credentials_refused`, `unreachable`, the registry's reason, or
            that of the trust metadata (`wrong_root` for one).
        ConfigError: if an agent runs on the state folder.
    """
    folder = EdgeFolder(settings.state)
    with exclusive(folder.lock):
        identity = choose_identity(load_identity(folder.identity), token, again=again)
        return await Enrolment(settings, identity).run(timeout_s)


def _log_failure(letter: DownLetter[Any], kind: str, error: Exception) -> None:
    log.error("letter.failed", letter=letter.id, kind=kind, message=str(error))


def _ignore_piece(_raw: bytes) -> None:
    # Nobody asked for any.
    log.debug("piece.ignored")


def _log_report(event: EventReport) -> None:
    # A device that is not enrolled cannot send events; whoever enrols it reads the log.
    log.warning(event.name, reason=event.reason, message=event.message)


def _log_unexpected(work: str, error: Exception) -> None:
    log.unexpected("enrol.unexpected", error, work=work)
