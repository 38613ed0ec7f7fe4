"""`Orchestrator`: everything that the command line does, for programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas.registry import Token
from services.kit import rpc
from services.kit.api.aggregator import JobName, JobRequest, JobView
from services.kit.api.depot import ReleaseRequest, ReleaseView
from services.kit.api.ota import CreateRequest, RolloutRequest, RolloutView
from services.kit.api.registry import DeviceRequest, DeviceView, TokenRequest
from services.kit.api.scheduler import SubmitRequest, TaskListRequest, TaskRequest, TaskView
from services.kit.bus import Bus, connect
from services.kit.fleet import list_devices
from services.kit.folder import StateFolder, default_root
from services.kit.permissions import OPERATOR
from services.kit.settings import Settings, load_settings

WATCH_INTERVAL_S = 0.5
SUBMIT_TIMEOUT_S = 60.0


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
