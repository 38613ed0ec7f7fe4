"""`Orchestrator`: everything that the command line does, for programs."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from causeway.rejects import Rejected, RejectedLetter, Wanted, list_rejected, read_rejected
from schemas.ids import Address
from schemas.registry import Token
from services.kit import rpc
from services.kit.api.aggregator import JobName, JobRequest, JobView
from services.kit.api.courier import (
    MAX_REPLAYED,
    BundleDevice,
    BundleExportAnswer,
    BundleExportRequest,
    BundleImportAnswer,
    BundleImportRequest,
    Replayed,
    ReplayRequest,
)
from services.kit.api.depot import ReleaseRequest, ReleaseView
from services.kit.api.ota import CreateRequest, RolloutRequest, RolloutView
from services.kit.api.registry import DeviceRequest, DeviceView, RecallRequest, RecallView, TokenRequest
from services.kit.api.scheduler import SubmitRequest, TaskListRequest, TaskRequest, TaskView
from services.kit.bus import Bus, connect
from services.kit.errors import UnreachableError
from services.kit.fleet import list_devices
from services.kit.folder import StateFolder, default_root
from services.kit.permissions import OPERATOR
from services.kit.settings import Settings, load_settings

WATCH_INTERVAL_S = 0.5
SUBMIT_TIMEOUT_S = 60.0
RECALL_TIMEOUT_S = 75.0
REPLAY_TIMEOUT_S = 120.0
BUNDLE_TIMEOUT_S = 30.0
TAKEOVER_S = 10.0
"""How long a request to the courier is repeated: between two active ones nobody answers."""


class Orchestrator:
    """An operator's session with one platform.

    Use as `async with Orchestrator(state) as platform: await platform.devices()`. Every call may raise `PlatformError`:
    `NotFoundError`, `RefusedError`, or `UnreachableError` when a service does not answer.

    Attributes:
        state: folder of the platform.
        settings: as read from it.
    """

    def __init__(self, state: Path | None = None) -> None:
        """`state` None: `CAUSEWAY_STATE`, else `.causeway`. Raises SettingsError if no platform lives there."""
        self.state = StateFolder((state or default_root()).absolute())
        self.settings: Settings = load_settings(self.state)
        self._bus: Bus | None = None

    async def __aenter__(self) -> Self:
        """Connect."""
        self._bus = await connect(self.state, self.settings, OPERATOR)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self.bus.close()

    @property
    def bus(self) -> Bus:
        """The connection, inside `async with`."""
        if self._bus is None:
            raise RuntimeError("use Orchestrator inside `async with`")
        return self._bus

    async def token(self, fleet: str, device: str, ttl_s: float = 86_400.0) -> Token:
        """Make an enrolment token for a new device."""
        request = TokenRequest(fleet=fleet, device=device, ttl_s=ttl_s)
        return Token.model_validate(await rpc.call(self.bus, "registry", "token", request))

    async def devices(self, fleet: str | None = None) -> list[DeviceView]:
        """Every device, with its last heartbeat."""
        return await list_devices(self.bus, fleet)

    async def device(self, fleet: str, device: str) -> DeviceView:
        """One device."""
        answer = await rpc.call(self.bus, "registry", "show", DeviceRequest(fleet=fleet, device=device))
        return DeviceView.model_validate(answer)

    async def revoke(self, fleet: str, device: str) -> None:
        """Cut a device off at once, and for good until it enrols anew."""
        await rpc.call(self.bus, "registry", "revoke", DeviceRequest(fleet=fleet, device=device))

    async def let_go(self, fleet: str, device: str) -> None:
        """End a device's quarantine: of two bodies with one key only one is left."""
        await rpc.call(self.bus, "registry", "release", DeviceRequest(fleet=fleet, device=device))

    async def recall(self, request: RecallRequest) -> RecallView:
        """Have a device send again what it keeps and the platform lost."""
        answer = await rpc.call(self.bus, "registry", "recall", request, timeout_s=RECALL_TIMEOUT_S)
        return RecallView.model_validate(answer)

    async def rejected(self, wanted: Wanted | None = None, limit: int = 1_000) -> list[Rejected]:
        """Messages that services refused in the last days: the newest that fit, oldest first."""
        return await list_rejected(self.bus, wanted or Wanted(), limit)

    async def rejected_letter(self, sequence: int) -> RejectedLetter:
        """One of them with its contents."""
        return await read_rejected(self.bus, sequence)

    async def replay(self, sequences: Sequence[int]) -> list[Replayed]:
        """Have rejected letters taken once more, in this order; what IN holds already has no second effect."""
        answers: list[Replayed] = []
        for start in range(0, len(sequences), MAX_REPLAYED):
            request = ReplayRequest(sequences=list(sequences[start : start + MAX_REPLAYED]))
            answer = await rpc.call(self.bus, "courier", "replay", request, timeout_s=REPLAY_TIMEOUT_S)
            answers += [Replayed.model_validate(item) for item in answer]
        return answers

    async def releases(self) -> list[ReleaseView]:
        """Every published release."""
        return [ReleaseView.model_validate(item) for item in await rpc.call(self.bus, "depot", "list")]

    async def release(self, model: str, version: str | None = None) -> ReleaseView:
        """One release; the newest if `version` is None."""
        answer = await rpc.call(self.bus, "depot", "show", ReleaseRequest(model=model, version=version))
        return ReleaseView.model_validate(answer)

    async def create_rollout(self, request: CreateRequest) -> RolloutView:
        """Begin to roll a release out."""
        return RolloutView.model_validate(await rpc.call(self.bus, "ota", "create", request))

    async def rollouts(self) -> list[RolloutView]:
        """Every rollout, newest first."""
        return [RolloutView.model_validate(item) for item in await rpc.call(self.bus, "ota", "list")]

    async def rollout(self, rollout: str) -> RolloutView:
        """One rollout."""
        answer = await rpc.call(self.bus, "ota", "show", RolloutRequest(rollout=rollout))
        return RolloutView.model_validate(answer)

    async def abort_rollout(self, rollout: str) -> RolloutView:
        """Assign no further device."""
        answer = await rpc.call(self.bus, "ota", "abort", RolloutRequest(rollout=rollout))
        return RolloutView.model_validate(answer)

    async def watch_rollout(self, rollout: str) -> AsyncIterator[RolloutView]:
        """The rollout as it changes, until it runs no longer."""
        last: RolloutView | None = None
        while last is None or last.state == "running":
            view = await self.rollout(rollout)
            if view != last:
                yield view
            last = view
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def submit(self, request: SubmitRequest) -> list[TaskView]:
        """Place tasks on idle devices."""
        answer = await rpc.call(self.bus, "scheduler", "submit", request, timeout_s=SUBMIT_TIMEOUT_S)
        return [TaskView.model_validate(item) for item in answer]

    async def tasks(self, fleet: str | None = None, limit: int = 200) -> list[TaskView]:
        """Tasks, newest first."""
        answer = await rpc.call(self.bus, "scheduler", "list", TaskListRequest(fleet=fleet, limit=limit))
        return [TaskView.model_validate(item) for item in answer]

    async def task(self, task: str) -> TaskView:
        """One task."""
        return TaskView.model_validate(await rpc.call(self.bus, "scheduler", "show", TaskRequest(task=task)))

    async def create_job(self, request: JobRequest) -> JobView:
        """Define a federated job."""
        return JobView.model_validate(await rpc.call(self.bus, "aggregator", "create", request))

    async def start_job(self, job: str) -> JobView:
        """Begin its first round."""
        return JobView.model_validate(await rpc.call(self.bus, "aggregator", "start", JobName(job=job)))

    async def stop_job(self, job: str) -> JobView:
        """Invite to no further round."""
        return JobView.model_validate(await rpc.call(self.bus, "aggregator", "stop", JobName(job=job)))

    async def jobs(self) -> list[JobView]:
        """Every job."""
        return [JobView.model_validate(item) for item in await rpc.call(self.bus, "aggregator", "list")]

    async def job(self, job: str) -> JobView:
        """One job."""
        return JobView.model_validate(await rpc.call(self.bus, "aggregator", "show", JobName(job=job)))

    async def import_bundle(self, frame: bytes, waited_s: float = 0.0) -> BundleImportAnswer:
        """Hand one fragment of a device's bundle to the courier; repeating it is harmless.

        Args:
            frame: as it travels.
            waited_s: how long it lay in its folder, which counts as age.
        """
        request = BundleImportRequest(frame=base64.b64encode(frame).decode(), waited_s=waited_s)
        return BundleImportAnswer.model_validate(await self._courier("bundle_import", request))

    async def export_bundle(self, address: Address, after: int = 0) -> BundleExportAnswer:
        """A bundle with what waits for a device; `after` is the former one's `next`."""
        request = BundleExportRequest(fleet=address.fleet, device=address.device, after=after)
        return BundleExportAnswer.model_validate(await self._courier("bundle_export", request))

    async def bundle_devices(self) -> list[BundleDevice]:
        """Devices that letters wait for, or that sent bundles lately."""
        return [BundleDevice.model_validate(item) for item in await self._courier("bundle_list")]

    async def _courier(self, verb: str, request: BaseModel | None = None) -> Any:
        deadline = asyncio.get_running_loop().time() + TAKEOVER_S
        while True:
            try:
                return await rpc.call(self.bus, "courier", verb, request, timeout_s=BUNDLE_TIMEOUT_S)
            except UnreachableError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(WATCH_INTERVAL_S)
