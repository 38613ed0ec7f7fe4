"""What went wrong on this device: as events for the platform, as problems for people who look at its status."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from edge_runtime.budget import Budget
from edge_runtime.errors import EdgeError, OutboxError
from edge_runtime.logs import Log
from edge_runtime.parcels.fetching import PieceRefusal
from schemas.events import DownLetter, Message
from schemas.ids import WORD
from schemas.registry import EventReport

log = Log(__name__)

PIECE_REPORTS_PER_MINUTE = 10
MAX_LINE = 512
"""Characters of a message in an event."""


class Alarms:
    """Tells of failures and never fails itself.

    Args:
        send: stores a letter.

    Attributes:
        problems: what does not work at present, by the name of the work.
    """

    def __init__(self, send: Callable[[str, Message], object]) -> None:
        self._send = send
        self._piece_budget = Budget(PIECE_REPORTS_PER_MINUTE)
        self._unexpected: Counter[str] = Counter()
        self.problems: dict[str, str] = {}

    def unexpected(self, work: str, error: Exception) -> None:
        """Work failed as nobody expected, and the agent goes on: counted, shown in status, logged with its place.

        What fails in the same way again is not logged again: the log may stand on a disk that is full.
        """
        self._unexpected[work] += 1
        before, found = self.problems.get(work, ""), f"{work} failed: {error!r}"[:MAX_LINE] + "; the log says where"
        self.problems[work] = f"{found}; {self._unexpected[work]} since the start"
        if not before.startswith(found):
            log.unexpected("agent.unexpected", error, work=work)

    def report(self, event: EventReport) -> None:
        """Send an event; if it cannot be stored, that is a problem of its own."""
        try:
            self._send("event", event)
        except OutboxError as error:
            self.problems["outbox"] = str(error)
            log.error("outbox.failed", reason=error.reason, message=str(error), lost=event.name)
        except Exception as error:  # noqa: BLE001 - whoever reports has work of its own to go on with
            self.unexpected(f"event {event.name}", error)

    def handler_failed(self, letter: DownLetter[Any], kind: str, error: Exception) -> None:
        """A part raised over a letter, which counts as handled."""
        self.report(
            EventReport(
                name="letter.failed",
                severity="warning",
                reason=_word(error.reason) if isinstance(error, EdgeError) else "failed",
                message=_plain(f"{kind} letter {letter.id}: {error}"),
                details={"letter": letter.id, "kind": kind},
            )
        )

    def piece_refused(self, refusal: PieceRefusal) -> None:
        """Bytes that are not what they claim to be; a flood of them is told in part only."""
        log.warning("piece.refused", reason=refusal.reason, message=refusal.message)
        if self._piece_budget.take(time.monotonic()):
            self.report(
                EventReport(
                    name="piece.refused",
                    severity="high",
                    reason=_word(refusal.reason),
                    message=_plain(refusal.message),
                    details=dict(refusal.details),
                )
            )


def _plain(text: str) -> str:
    """What an event can carry of it: a file name that is not UTF-8 has characters that no message may have."""
    return text.encode(errors="backslashreplace").decode()[:MAX_LINE]


def _word(reason: str) -> str:
    return reason if re.fullmatch(WORD, reason) else EdgeError.reason
