"""A registry that dies when it is about to announce an event, for tests of what it leaves behind.

`CAUSEWAY_TEST_DIES_AT=EVENT python -m tests.support.dying_registry --state STATE`
"""

from __future__ import annotations

import os
import sys
from typing import Any

from nats.js import JetStreamContext

from services.kit.service import main
from services.registry.app import wire
from tests.support.platform import LivePlatform, eventually

DEAD = 137
_EVENT = "CAUSEWAY_TEST_DIES_AT"


def start_dying_registry(live: LivePlatform, event: str) -> None:
    """Start one in the registry's place and wait until it is ready."""
    command = ["env", f"{_EVENT}={event}", sys.executable, "-m", "tests.support.dying_registry"]
    live._spawn("registry", [*command, "--state", str(live.state.root)])
    port = live.settings.http.health_ports["registry"]
    eventually(lambda: live._ready("registry", port), "the registry to be ready")


def _die_at(event: str) -> None:
    publish = JetStreamContext.publish

    async def fatal(self: JetStreamContext, subject: str, *arguments: Any, **more: Any) -> Any:
        if subject.endswith(f".{event}"):
            os._exit(DEAD)
        return await publish(self, subject, *arguments, **more)

    JetStreamContext.publish = fatal  # type: ignore[method-assign]


if __name__ == "__main__":
    _die_at(os.environ.pop(_EVENT))
    main("registry", wire)
