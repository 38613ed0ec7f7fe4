"""One JSON object per line on standard error, with the standard library alone."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_ROOT = "edge_runtime"


class JsonLines(logging.Formatter):
    """Renders a record; the fields given as `extra={"fields": {...}}` stand beside the event."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Log:
    """A logger that takes an event and its fields. Credentials are never given to it."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        """Details for whoever looks for a fault."""
        self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, **fields: Any) -> None:
        """Something happened."""
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: Any) -> None:
        """Something is wrong and mends itself."""
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, **fields: Any) -> None:
        """Something is wrong and a person should look."""
        self._logger.error(event, extra={"fields": fields})

    def exception(self, event: str, **fields: Any) -> None:
        """An error that nobody expected, with its stack."""
        self._logger.error(event, exc_info=True, extra={"fields": fields})  # noqa: LOG014 - called inside one

    def unexpected(self, event: str, error: Exception, **fields: Any) -> None:
        """The same, of an error that was caught elsewhere."""
        self._logger.error(event, exc_info=error, extra={"fields": fields})


def configure(level: str) -> None:
    """Send the runtime's log to standard error; called by the CLI only, since a host program has its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger(_ROOT)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
