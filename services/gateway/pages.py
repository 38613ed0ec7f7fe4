"""What the pages answer beside the services' own views, and the folds that make it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from schemas.events import utc
from services.kit.api.registry import DeviceView


class ErrorBody(BaseModel):
    """One refusal."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """What every error answers."""

    error: ErrorBody


class HealthAnswer(BaseModel):
    """`/health`."""

    status: Literal["ok", "degraded", "unavailable"]
    bus: Literal["connected", "disconnected"]
    services: dict[str, str]


class AgentStatus(BaseModel):
    """One device in `/api/agents/status`; a reading that is absent is null, never 0."""

    fleet: str
    device: str
    status: Literal["online", "offline", "revoked", "quarantined"]
    last_seen: datetime | None
    battery_percent: float | None = None
    temp_c: float | None = None
    cpu_ratio: float | None = None
    ram_free_mb: int | None = None
    models: dict[str, int] = {}
    """Revision by model."""
    tasks: int = 0
    waiting_letters: int | None = None


class AgentsStatus(BaseModel):
    """`/api/agents/status`."""

    total: int
    online: int
    by_status: dict[str, int]
    agents: list[AgentStatus]


def health(services: dict[str, str], *, connected: bool) -> HealthAnswer:
    """`degraded`: a service does not answer; `unavailable`: the bus is gone."""
    status: Literal["ok", "degraded", "unavailable"] = "ok"
    if not connected:
        status = "unavailable"
    elif any(state != "ok" for state in services.values()):
        status = "degraded"
    return HealthAnswer(status=status, bus="connected" if connected else "disconnected", services=services)


def agents_status(devices: Sequence[DeviceView]) -> AgentsStatus:
    """Fold the devices into one page."""
    agents = [_agent(view) for view in devices]
    counts = Counter(agent.status for agent in agents)
    return AgentsStatus(total=len(agents), online=counts["online"], by_status=dict(counts), agents=agents)


def _agent(view: DeviceView) -> AgentStatus:
    beat = view.heartbeat
    seen = None if view.last_seen is None else utc(view.last_seen)
    standing = view.standing
    status = ("online" if view.online else "offline") if standing == "enrolled" else standing
    agent = AgentStatus.model_validate(
        {"fleet": view.fleet, "device": view.device, "status": status, "last_seen": seen}
    )
    if beat is None:
        return agent
    return agent.model_copy(
        update={
            "battery_percent": beat.battery_percent,
            "temp_c": beat.temp_c,
            "cpu_ratio": beat.cpu_ratio,
            "ram_free_mb": beat.ram_free_mb,
            "models": {model.name: model.revision for model in beat.models},
            "tasks": len(beat.tasks),
            "waiting_letters": beat.outbox.letters if beat.outbox else None,
        }
    )
