"""What fails as nobody expected: said once, and tried again later and later, so that it ends nothing else."""

from __future__ import annotations

from edge_runtime.logs import Log

log = Log(__name__)

FIRST_AGAIN_S = 1.0
MAX_AGAIN_S = 300.0
_MAX_LINE = 512


class Trouble:
    """Of one part, which its owner gives a name."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._said: str | None = None
        self._pause_s = FIRST_AGAIN_S
        self.problem: str | None = None
        """For the status; None while all is well."""
        self.until = 0.0
        """Monotonic seconds before which it is not tried again."""

    def failed(self, error: Exception, now: float) -> None:
        """The log shows the stack of each error that differs from the last."""
        message = f"{error!r}"[:_MAX_LINE]
        if message != self._said:
            log.unexpected("letters.unexpected", error, part=self._part)
        self._said = message
        self.problem = f"{self._part}: {message}; the log says where; it is tried again"
        self.until = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_AGAIN_S)

    def passed(self) -> None:
        """It worked."""
        self.problem, self.until, self._pause_s = None, 0.0, FIRST_AGAIN_S
