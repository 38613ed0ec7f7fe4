"""What the gateway asks of the services: one class that speaks to the bus, so that the pages do not."""

from __future__ import annotations

import asyncio
from typing import Literal, TypeVar

from pydantic import BaseModel, TypeAdapter

from services.kit import rpc
from services.kit.api.aggregator import JobView
from services.kit.api.ota import RolloutView
from services.kit.api.registry import DeviceRequest, DeviceView
from services.kit.api.scheduler import TaskListRequest, TaskView
from services.kit.bus import Bus
from services.kit.errors import PlatformError, UnreachableError
from services.kit.fleet import list_devices

ASK_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 1.0
PROBED = ("registry", "depot", "ota", "scheduler", "aggregator")
"""Services that answer requests; the courier answers none."""

M = TypeVar("M", bound=BaseModel)
Standing = Literal["ok", "unreachable"]


class Platform:
    """Asks services; every method raises `PlatformError`, `UnreachableError` where a service does not answer."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @property
    def connected(self) -> bool:
        """Whether the bus is there."""
        return bool(self._bus.nc.is_connected)

    async def devices(self, fleet: str | None = None) -> list[DeviceView]:
        """Devices with their last heartbeat."""
        self._require_bus("registry", "list")
        return await list_devices(self._bus, fleet, timeout_s=ASK_TIMEOUT_S)

    async def device(self, fleet: str, device: str) -> DeviceView:
        """One device."""
        answer = await self._ask("registry", "show", DeviceRequest(fleet=fleet, device=device))
        return DeviceView.model_validate(answer)

    async def rollouts(self) -> list[RolloutView]:
        """Rollouts with their devices by state."""
        return await self._list("ota", RolloutView)

    async def tasks(self, fleet: str | None, limit: int) -> list[TaskView]:
        """Tasks, newest first."""
        return await self._list("scheduler", TaskView, TaskListRequest(fleet=fleet, limit=limit))

    async def jobs(self) -> list[JobView]:
        """Learning jobs with their rounds."""
        return await self._list("aggregator", JobView)

    async def services(self) -> dict[str, Standing]:
        """Which services answer."""
        found = await asyncio.gather(*(self._probe(service) for service in PROBED))
        return dict(zip(PROBED, found, strict=True))

    async def _list(self, service: str, model: type[M], request: BaseModel | None = None) -> list[M]:
        return TypeAdapter(list[model]).validate_python(await self._ask(service, "list", request))  # type: ignore[valid-type]

    async def _ask(self, service: str, verb: str, request: BaseModel | None = None) -> object:
        self._require_bus(service, verb)
        return await rpc.call(self._bus, service, verb, request, timeout_s=ASK_TIMEOUT_S)

    def _require_bus(self, service: str, verb: str) -> None:
        if not self.connected:
            raise UnreachableError(f"ask {service} to {verb}: the bus is not connected; see `causeway up`")

    async def _probe(self, service: str) -> Standing:
        # `show` without a name is refused at once, which is answer enough and costs the service nothing.
        if not self.connected:
            return "unreachable"
        try:
            await rpc.call(self._bus, service, "show", timeout_s=PROBE_TIMEOUT_S)
        except UnreachableError:
            return "unreachable"
        except PlatformError:
            pass
        return "ok"
