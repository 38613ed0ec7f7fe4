"""What the agent tells of itself: the heartbeat for the platform, the status for people on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.identity import Identity
from edge_runtime.letters.outbox import Outbox
from edge_runtime.line import Line
from edge_runtime.ports import Clock, Readings
from edge_runtime.trust.keyring import Keyring
from schemas.registry import Heartbeat, OutboxState, ServedModel

MAX_MODELS = 16
MAX_MARKS = 32


@dataclass(frozen=True, slots=True)
class Vitals:
    """Looks at the parts; changes nothing."""

    line: Line
    outbox: Outbox
    keyring: Keyring
    clock: Clock
    readings: Readings
    parts: Sequence[object]
    """Handlers; those with `served()` or `marks()` are asked."""
    identity: Callable[[], Identity]
    url: Callable[[], str]
    restarts: int

    def heartbeat(self) -> Heartbeat:
        """Read now."""
        reading, summary = self.readings.heartbeat(), self.outbox.summary()
        return reading.model_copy(
            update={
                "session": self.line.session,
                "network": reading.network.model_copy(update={"rtt_ms": self.line.rtt_ms}),
                "models": self.served(),
                "tasks": self.marks(),
                "outbox": OutboxState(
                    letters=summary.waiting.letters, bytes=summary.waiting.bytes, dropped=summary.dropped
                ),
                "trust_age_s": self.keyring.age_s(self.clock.now()),
                "restarts": self.restarts,
            }
        )

    def served(self) -> list[ServedModel]:
        """Models that answer here."""
        return [model for part in self.parts if hasattr(part, "served") for model in part.served()][:MAX_MODELS]

    def marks(self) -> list[str]:
        """Tasks in hand, as `task:term`."""
        return [mark for part in self.parts if hasattr(part, "marks") for mark in part.marks()][:MAX_MARKS]

    def status(self, problems: Mapping[str, str]) -> dict[str, Any]:
        """What `status.json` says.

        Args:
            problems: of the agent's periodic work, by its name.
        """
        line, identity, summary = self.line, self.identity(), self.outbox.summary()
        trust = str(line.trust.error) if line.trust.error is not None else None
        found = [*problems.values(), line.postman.problem, line.mailroom.problem, trust]
        return {
            "pid": os.getpid(),
            "fleet": identity.fleet,
            "device": identity.device,
            "platform": identity.platform,
            "url": self.url(),
            "connected": line.answered,
            "problem": None if line.answered else line.link.problem or "waiting for the courier's answer to hello",
            "session": line.session,
            "epoch": self.outbox.epoch,
            "lanes": {lane: {"issued": i, "mark": m} for lane, (i, m) in self.outbox.lanes().items()},
            "outbox": {
                "waiting": summary.waiting.letters,
                "waiting_bytes": summary.waiting.bytes,
                "kept": summary.kept.letters,
                "dropped": summary.dropped,
                "refused": summary.refused,
            },
            "trust": self.keyring.state().model_dump(),
            "models": [model.model_dump(exclude_none=True) for model in self.served()],
            "tasks": self.marks(),
            "refusals": dict(line.mailroom.refusals),
            "overrun": line.link.incoming.dropped,
            "refusals_unreported": line.mailroom.unreported,
            "problems": [problem for problem in found if problem],
            "credentials_expire": identity.credentials.expires.isoformat() if identity.credentials else None,
            "restarts": self.restarts,
        }
