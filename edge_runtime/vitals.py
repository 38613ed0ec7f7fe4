"""What the agent tells of itself: the heartbeat for the platform, the status for people on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.carriers.service import CarrierService
from edge_runtime.clock import FlooredClock
from edge_runtime.conduct.conduct import Conduct
from edge_runtime.identity import Identity
from edge_runtime.letters.outbox import Outbox
from edge_runtime.line import Line
from edge_runtime.ports import Readings
from edge_runtime.trust.keyring import Keyring
from schemas.registry import Heartbeat, Network, OutboxState, ServedModel

MAX_MODELS = 16
MAX_MARKS = 32
MAX_RTT_MS = 600_000.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """Looks at the parts; changes nothing."""

    line: Line
    conduct: Conduct
    outbox: Outbox
    keyring: Keyring
    clock: FlooredClock
    readings: Readings
    parts: Sequence[object]
    """Handlers; those with `served()` or `marks()` are asked."""
    identity: Callable[[], Identity]
    url: Callable[[], str]
    restarts: int
    carriers: CarrierService | None = None

    def heartbeat(self) -> Heartbeat:
        """Read now."""
        reading, summary = self.readings.heartbeat(), self.outbox.summary()
        return reading.model_copy(
            update={
                "session": self.line.session,
                "network": self._network(reading.network),
                "models": self.served(),
                "tasks": self.marks(),
                "outbox": OutboxState(
                    letters=summary.waiting.letters,
                    bytes=summary.waiting.bytes,
                    dropped=summary.dropped,
                    storage=summary.storage,
                ),
                "trust_age_s": self.keyring.age_s(self.clock.now()),
                "restarts": self.restarts,
            }
        )

    def _network(self, network: Network) -> Network:
        link = self.line.link.measured()
        rtt_ms = None if link.round_trip_s is None else min(MAX_RTT_MS, link.round_trip_s * 1_000)
        quality = self.conduct.decisions().quality
        return network.model_copy(update={"rtt_ms": rtt_ms, "loss_ratio": link.loss_ratio, "quality": quality})

    def figures(self) -> dict[str, Any]:
        """What was measured; it changes all the time."""
        link, postman = self.line.link.measured(), self.line.postman
        return {
            "round_trip_s": link.round_trip_s,
            "loss_ratio": link.loss_ratio,
            "up_bytes_per_s": link.up_bytes_per_s,
            "backlog_bytes": link.backlog_bytes,
            "congestion": link.congestion,
            "hello_s": self.line.hello_s,
            "receipt_s": postman.round_trip.mean_s,
            "letters_sent": postman.sent,
            "letters_sent_again": postman.sent_again,
            "connections": self.line.link.connections,
            "explanation": self._explanation(),
        }

    def _explanation(self) -> dict[str, Any]:
        carriers = self.carriers.status() if self.carriers is not None else {}
        sight = (carriers.get("neighbours") or {}).get("in_sight", [])
        return self.conduct.explanation(neighbours=len(sight), folder=bool(carriers.get("folder")))

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
        decisions = self.conduct.decisions()
        trust = str(line.trust.error) if line.trust.error is not None else None
        found = [*problems.values(), summary.problem, line.postman.problem, line.mailroom.problem, trust]
        carriers = self.carriers
        found += carriers.problems() if carriers is not None else []
        return {
            "pid": os.getpid(),
            "fleet": identity.fleet,
            "device": identity.device,
            "platform": identity.platform,
            "url": self.url(),
            "connected": line.answered,
            "problem": None if line.answered else line.link.problem or "waiting for the courier's answer to hello",
            "suspended": line.standing.suspended and line.standing.suspended.model_dump(mode="json"),
            "session": line.session,
            "epoch": self.outbox.epoch,
            "lanes": {lane: {"issued": i, "mark": m} for lane, (i, m) in self.outbox.lanes().items()},
            "outbox": {
                "waiting": summary.waiting.letters,
                "waiting_bytes": summary.waiting.bytes,
                "kept": summary.kept.letters,
                "dropped": summary.dropped,
                "superseded": summary.superseded,
                "storage": summary.storage,
                "refused": summary.refused,
            },
            "trust": self.keyring.state().model_dump(),
            "models": [model.model_dump(exclude_none=True) for model in self.served()],
            "tasks": self.marks(),
            "carriers": carriers.status() if carriers is not None else None,
            "refusals": dict(line.mailroom.refusals),
            "refusals_unreported": line.mailroom.unreported,
            "problems": [problem for problem in found if problem],
            "credentials_expire": identity.credentials.expires.isoformat() if identity.credentials else None,
            "restarts": self.restarts,
            "conduct": {"quality": decisions.quality, "mode": decisions.mode, "bulk": decisions.bulk},
            "clock": "known" if self.clock.known else "a guess",
        }
