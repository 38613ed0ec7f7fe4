"""Judges every letter down: signed by whom, for whom, how old, how often; stores it, says got, passes it on."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edge_runtime.budget import Budget
from edge_runtime.errors import OutboxError, TrustError
from edge_runtime.identity import Identity
from edge_runtime.letters.admission import Admission
from edge_runtime.letters.dispatch import Dispatcher
from edge_runtime.letters.inbox import Held, Inbox
from edge_runtime.logs import Log
from edge_runtime.trust.keyring import Keyring
from schemas.envelope import Envelope, parse
from schemas.errors import ContractError
from schemas.events import DownLetter
from schemas.letters import check_down, read_down
from schemas.registry import EventReport
from schemas.trust import ServiceKey

log = Log(__name__)

MAX_UNKNOWN = 16
"""Letters by unknown keys that wait for newer trust."""
MAX_REFUSED = 512
REPORTS_PER_MINUTE = 30
_MAX_LINE = 512


@dataclass(frozen=True, slots=True)
class Desk:
    """What the mailroom works with."""

    inbox: Inbox
    keyring: Keyring
    dispatcher: Dispatcher
    identity: Callable[[], Identity]
    now: Callable[[], datetime]
    got: Callable[[str], None]
    report: Callable[[EventReport], None]
    ask_trust: Callable[[], None]


class Mailroom:
    """Takes letters as they come from the network."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._unknown: deque[tuple[str, bytes]] = deque(maxlen=MAX_UNKNOWN)
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._budget = Budget(REPORTS_PER_MINUTE)
        self.refusals: dict[str, int] = {}
        """Refused letters by reason, since the start."""
        self.unreported = 0
        self.problem: str | None = None

    def receive(self, kind: str, raw: bytes, *, final: bool = False) -> None:
        """Judge one letter.

        Args:
            kind: of the topic that it came on.
            raw: the envelope.
            final: trust was refreshed since it came, so an unknown key is now a refusal.
        """
        desk = self._desk
        try:
            envelope = parse(raw)
            key = desk.keyring.verify(envelope, kind)
            letter = read_down(envelope.body, kind)
        except TrustError as error:
            self._distrust(kind, raw, error, final=final)
            return
        except ContractError as error:
            self._refuse(_fingerprint(raw), kind, error.reason, str(error))
            return
        try:
            self._admit(letter, kind, raw, key)
            self.problem = None
        except ContractError as error:
            self._refuse(letter.id, kind, error.reason, str(error))
            desk.got(letter.id)
        except OutboxError as error:
            # Not got, so the courier keeps it.
            self.problem = str(error)
            log.error("inbox.failed", reason=error.reason, message=str(error))

    def trust_changed(self) -> None:
        """Judge again what was signed by unknown keys."""
        waiting, self._unknown = self._unknown, deque(maxlen=MAX_UNKNOWN)
        for kind, raw in waiting:
            self.receive(kind, raw, final=True)

    def resume(self) -> None:
        """Pass on what was stored and not handled before the last end."""
        try:
            waiting = self._desk.inbox.held()
        except OutboxError as error:
            self.problem = str(error)
            log.error("inbox.failed", reason=error.reason, message=str(error))
            return
        for held in waiting:
            try:
                self._resume(held)
            except OutboxError as error:
                # It comes to the same at the next start.
                log.error("inbox.failed", reason=error.reason, message=str(error))
            except Exception:  # a torn row, say; the others are passed on, and it stays as it is
                log.exception("letters.not_resumed", kind=held.kind, letter=held.id)

    def _resume(self, held: Held) -> None:
        try:
            envelope = parse(held.envelope)
            self._desk.keyring.verify(envelope, held.kind)
            letter = read_down(envelope.body, held.kind)
        except (TrustError, ContractError) as error:
            self._refuse(held.id, held.kind, error.reason, str(error))
            self._desk.inbox.handled(held.id)
            return
        if held.id != letter.id:
            self._desk.inbox.rename(held.id, letter.id)
        self._desk.dispatcher.submit(letter, held.kind)

    def _admit(self, letter: DownLetter[Any], kind: str, raw: bytes, key: ServiceKey) -> None:
        desk, identity = self._desk, self._desk.identity()
        check_generation(letter, key)
        check_down(letter, identity.address, identity.platform, desk.now())
        admission = desk.inbox.judge(letter, kind)
        if admission is Admission.REPLAYED:
            raise ContractError(
                f"{kind} letter {letter.id} has revision {letter.revision} of generation {letter.generation}, "
                f"a newer one of slot {letter.slot} was taken before",
                reason="replayed",
            )
        if admission is Admission.NEW:
            if desk.inbox.full():
                log.warning("inbox.full", letter=letter.id, kind=kind)
                return
            desk.inbox.take(letter, kind, raw, key.keyid)
            log.info("letters.taken", kind=kind, letter=letter.id, slot=letter.slot)
        desk.got(letter.id)
        if admission is Admission.NEW:
            desk.dispatcher.submit(letter, kind)

    def _distrust(self, kind: str, raw: bytes, error: TrustError, *, final: bool) -> None:
        if error.reason == "unknown_key" and not final:
            if (kind, raw) not in self._unknown:
                self._unknown.append((kind, raw))
            self._desk.ask_trust()
            return
        letter_id = _claimed_id(raw, kind)
        self._refuse(letter_id or _fingerprint(raw), kind, error.reason, str(error))
        # A service did sign this one; a broken or unknown signature may hide an honest letter, so that stays.
        if error.reason == "key_not_allowed" and letter_id is not None:
            self._desk.got(letter_id)

    def _refuse(self, letter_id: str, kind: str, reason: str, message: str) -> None:
        if letter_id in self._refused:
            return
        self._refused[letter_id] = None
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        log.warning("letters.refused", kind=kind, letter=letter_id, reason=reason, message=message)
        if not self._budget.take(time.monotonic()):
            self.unreported += 1
            return
        self._desk.report(
            EventReport(
                name="letter.refused",
                severity="high",
                reason=reason,
                message=message[:_MAX_LINE],
                details={"letter": letter_id, "kind": kind},
            )
        )


def check_generation(letter: DownLetter[Any], key: ServiceKey) -> None:
    """Refuse a letter that claims another generation than its key has; it could outrank every honest one.

    Raises:
        ContractError: `wrong_generation`.
    """
    if letter.generation != key.generation:
        raise ContractError(
            f"letter {letter.id} claims generation {letter.generation}, the key of {key.service} has {key.generation}",
            reason="wrong_generation",
        )


def _fingerprint(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:26]


def _claimed_id(raw: bytes, kind: str) -> str | None:
    try:
        envelope: Envelope = parse(raw)
        return read_down(envelope.body, kind).id
    except ContractError:
        return None
