"""What the courier last said of this device's letters: whether they are taken."""

from __future__ import annotations

from edge_runtime.logs import Log
from schemas.courier import Receipt, Suspension

log = Log(__name__)


class Standing:
    """Follows receipts of the present session. A device that has no link knows what it was told last."""

    def __init__(self) -> None:
        self.suspended: Suspension | None = None

    def learn(self, receipt: Receipt) -> None:
        """Take over what a receipt says; news goes into the log."""
        before, self.suspended = self.suspended, receipt.suspended
        if self.suspended is not None and before is None:
            log.error("device.quarantined", since=self.suspended.since.isoformat(), message=self.suspended.message)
        elif self.suspended is None and before is not None:
            log.info("device.released")
