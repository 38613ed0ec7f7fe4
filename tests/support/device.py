"""The ports of the runtime, for tests of what acts on letters: real files, real jobs, a recorded outbox."""

from __future__ import annotations

import asyncio
import importlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ulid import ULID

from edge_runtime.errors import EdgeError, FetchError, WorkerError
from edge_runtime.folder import EdgeFolder
from edge_runtime.ports import Context
from edge_runtime.settings import EdgeSettings
from edge_runtime.worker import JOBS
from schemas.aggregator import Artifact
from schemas.events import DownLetter, Message
from schemas.ids import Address
from schemas.ota import Assign, Gates, Report
from schemas.registry import Capabilities, Heartbeat
from tests.support.models import Made, sha256

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PLATFORM = "01J00000000000000000000000"
SESSION = "01J00000000000000000000001"


@dataclass
class FixedClock:
    time: datetime = NOW

    def now(self) -> datetime:
        return self.time


@dataclass
class RecordedSender:
    """An outbox that always has room, unless told otherwise."""

    letters: list[tuple[str, Message]] = field(default_factory=list)
    parcels: list[tuple[str, bytes]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def send(self, kind: str, data: Message, *, lane: str | None = None, letter_id: str | None = None) -> str:
        if letter_id is None or letter_id not in self.ids:
            self.letters.append((kind, type(data).read(data.write())))
            self.ids.append(letter_id or str(ULID()))
        return self.ids[-1] if letter_id is None else letter_id

    def publish_state(self, kind: str, data: Message) -> None:
        raise AssertionError("no state is sent here")

    def send_parcel(self, kind: str, raw: bytes) -> bool:
        self.parcels.append((kind, raw))
        return True

    @property
    def reports(self) -> list[Report]:
        return [data for kind, data in self.letters if kind == "report" and isinstance(data, Report)]

    @property
    def steps(self) -> list[str]:
        """What was reported, as `step/outcome` or `step/outcome/reason`."""
        return ["/".join(filter(None, (r.step, r.outcome, r.reason))) for r in self.reports]


@dataclass
class Library:
    """Releases: answers `trust.target` as the verified metadata would, and runs every other job as the worker would.

    `lose` names jobs that take the worker down as many times.
    """

    releases: list[Made] = field(default_factory=list)
    lookup_errors: list[str] = field(default_factory=list)
    lose: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    async def call(self, job: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        self.calls.append(job)
        if self.lose.get(job, 0) > 0:
            self.lose[job] -= 1
            raise WorkerError(f"run job {job}: the worker ended with -9", reason="crashed")
        if job == "trust.target":
            return self._target(params["target"])
        module, name = JOBS[job].split(":")
        try:
            result: dict[str, Any] = getattr(importlib.import_module(module), name)(params)
        except EdgeError as error:
            raise WorkerError(str(error), reason=error.reason) from error
        return result

    def _target(self, target: str) -> dict[str, Any]:
        if self.lookup_errors:
            reason = self.lookup_errors.pop(0)
            raise WorkerError(f"look up target {target}: {reason}", reason=reason)
        for made in self.releases:
            if made.target == target:
                return {
                    "sha256": made.digest,
                    "length": len(made.model),
                    "custom": made.custom.model_dump(mode="json"),
                    "floor": made.floor,
                    "revoked": list(made.revoked),
                }
        raise WorkerError(f"look up target {target}: no release of that name is signed", reason="unknown_target")

    async def fetch(self, artifact: Artifact, destination: Path) -> None:
        for made in self.releases:
            for data in (made.model, made.smoke):
                if data is not None and sha256(data) == artifact.sha256:
                    await asyncio.to_thread(destination.write_bytes, data)
                    return
        raise FetchError(f"fetch {artifact.sha256[:12]}: nobody has it", reason="timeout")


@dataclass
class Body:
    """What the device is made of and how it is doing."""

    made_of: Capabilities = field(
        default_factory=lambda: Capabilities(
            os="linux", arch="x86_64", python="3.11", agent="0", cpu_count=2, ram_mb=512, disk_mb=4_096
        )
    )
    doing: Heartbeat = field(default_factory=lambda: Heartbeat(session=SESSION, uptime_s=1))

    def capabilities(self) -> Capabilities:
        return self.made_of

    def heartbeat(self) -> Heartbeat:
        return self.doing


@dataclass
class Bench:
    """A device on the bench; `context` is what the parts under test are built with."""

    root: Path
    library: Library = field(default_factory=Library)
    sender: RecordedSender = field(default_factory=RecordedSender)
    clock: FixedClock = field(default_factory=FixedClock)
    body: Body = field(default_factory=Body)
    settings: EdgeSettings = field(default_factory=EdgeSettings)
    revision: int = 0

    @property
    def context(self) -> Context:
        return Context(
            address=Address("harbour", "cam-1"),
            platform=PLATFORM,
            folder=EdgeFolder(self.root),
            settings=self.settings,
            clock=self.clock,
            sender=self.sender,
            jobs=self.library,
            heavy_jobs=self.library,
            parcels=self.library,
            readings=self.body,
        )

    def publish(self, made: Made) -> Made:
        """Sign and publish a release."""
        self.library.releases.append(made)
        return made

    def assign(
        self, made: Made, *, action: str = "install", gates: Gates | None = None, **changes: object
    ) -> DownLetter[Assign]:
        """The next assignment of a release; `changes` are what the assigner gets wrong."""
        self.revision += 1
        fields: dict[str, object] = {
            "model": made.custom.model,
            "target": made.target,
            "version": made.custom.version,
            "sha256": made.digest,
            "length": len(made.model),
            "seq": made.custom.seq,
            "action": action,
            "rollout": str(ULID()),
            "wave": 0,
            "gates": gates or Gates(),
            "deadline": self.clock.time + timedelta(hours=1),
        }
        return DownLetter[Assign](
            id=str(ULID()),
            source="/services/ota",
            type="causeway.assign.v1",
            time=self.clock.time,
            platform=PLATFORM,
            recipient="/fleets/harbour/devices/cam-1",
            expires=self.clock.time + timedelta(days=1),
            generation=1,
            revision=self.revision,
            slot=made.custom.model,
            data=Assign.model_validate(fields | changes),
        )
