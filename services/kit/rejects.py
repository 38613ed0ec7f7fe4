"""What a service refused, kept with its reason in REJECTS and counted."""

from __future__ import annotations

import time
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import structlog
from nats.errors import Error as NatsError
from prometheus_client import Counter

from schemas.errors import ContractError
from schemas.topics import reject_subject
from services.kit.bus import Bus

log = structlog.get_logger()

REJECTED = Counter(
    "causeway_rejected_total", "Messages refused, by service, kind and reason.", ["service", "kind", "reason"]
)
MAX_KEPT_BYTES = 65_536
KEPT_PER_MINUTE = 10
MINUTE_S = 60.0
SUBJECT = "Causeway-Subject"
REASON = "Causeway-Reason"
MESSAGE = "Causeway-Message"
"""Headers of a message in REJECTS: what it came on, and why it was refused."""
_MAX_REASON = 400


@dataclass(slots=True)
class RejectGate:
    """Lets so many rejects per device, reason and minute into REJECTS; a device sends again what was refused."""

    per_minute: int
    _window: float = 0.0
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def allows(self, sender: str, reason: str, now: float) -> bool:
        """Whether to keep this one."""
        if now >= self._window:
            self._window = now + MINUTE_S
            self._counts.clear()
        count = self._counts.get((sender, reason), 0) + 1
        self._counts[sender, reason] = count
        return count <= self.per_minute


class Rejects:
    """Writes refused messages to `cw.rejects.{service}`; never raises, since nothing else may stop."""

    def __init__(self, bus: Bus, service: str) -> None:
        self._bus = bus
        self._service = service

    async def keep(self, raw: bytes, *, subject: str, kind: str, reason: str, message: str) -> None:
        """Store the original bytes (cut to 64 KiB) with the subject they came on and why they were refused."""
        REJECTED.labels(self._service, kind, reason).inc()
        log.warning("message.rejected", service=self._service, subject=subject, reason=reason, detail=message)
        headers = {
            SUBJECT: _header(subject),
            REASON: _header(reason),
            MESSAGE: _header(message),
        }
        try:
            await self._bus.js.publish(reject_subject(self._service), raw[:MAX_KEPT_BYTES], headers=headers)
        except (NatsError, TimeoutError) as error:
            log.error("reject.not_kept", service=self._service, subject=subject, error=repr(error))


class Turnstile:
    """Refuses what devices publish, within bounds: all is counted, some of each device and reason is kept.

    Args:
        kinds: that may be labels; whatever else a sender made up counts as `unknown`.
    """

    def __init__(self, bus: Bus, service: str, kinds: AbstractSet[str], per_minute: int = KEPT_PER_MINUTE) -> None:
        self._rejects = Rejects(bus, service)
        self._service = service
        self._kinds = kinds
        self._gate = RejectGate(per_minute)

    async def refuse(self, subject: str, raw: bytes, error: ContractError) -> None:
        """Keep a refused message with its reason; beyond the bound it is only counted."""
        kind = subject.rsplit(".", 1)[-1]
        if kind not in self._kinds:
            kind = "unknown"
        sender = ".".join(subject.split(".")[2:4])
        if not self._gate.allows(sender, error.reason, time.monotonic()):
            REJECTED.labels(self._service, kind, error.reason).inc()
            return
        await self._rejects.keep(raw, subject=subject, kind=kind, reason=error.reason, message=str(error))


def _header(text: str) -> str:
    # Header values end at a line break, and bytes from strangers may hold any.
    printable = "".join(c if c.isprintable() and ord(c) < 127 else "?" for c in text)
    return printable[:_MAX_REASON] or "-"
