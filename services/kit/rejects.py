"""What a service refused, kept with its reason in REJECTS and counted."""

from __future__ import annotations

import structlog
from nats.errors import Error as NatsError
from prometheus_client import Counter

from schemas.topics import reject_subject
from services.kit.bus import Bus

log = structlog.get_logger()

REJECTED = Counter(
    "causeway_rejected_total", "Messages refused, by service, kind and reason.", ["service", "kind", "reason"]
)
MAX_KEPT_BYTES = 65_536
_MAX_REASON = 400


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
            "Causeway-Subject": _header(subject),
            "Causeway-Reason": _header(reason),
            "Causeway-Message": _header(message),
        }
        try:
            await self._bus.js.publish(reject_subject(self._service), raw[:MAX_KEPT_BYTES], headers=headers)
        except (NatsError, TimeoutError) as error:
            log.error("reject.not_kept", service=self._service, subject=subject, error=repr(error))


def _header(text: str) -> str:
    # Header values end at a line break, and bytes from strangers may hold any.
    printable = "".join(c if c.isprintable() and ord(c) < 127 else "?" for c in text)
    return printable[:_MAX_REASON] or "-"
