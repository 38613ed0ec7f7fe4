"""The registry's list of devices, whole, however many messages it takes."""

from __future__ import annotations

from pydantic import TypeAdapter

from services.kit import rpc
from services.kit.api.registry import DeviceView, ListRequest
from services.kit.bus import Bus

_VIEWS = TypeAdapter(list[DeviceView])


async def list_devices(
    bus: Bus, fleet: str | None = None, *, timeout_s: float = rpc.DEFAULT_TIMEOUT_S
) -> list[DeviceView]:
    """Every device of a fleet, or of all, with its last heartbeat.

    Raises:
        PlatformError: if the registry does not answer each page within `timeout_s`.
    """
    found: list[DeviceView] = []
    after: str | None = None
    while True:
        answer = await rpc.call(bus, "registry", "list", ListRequest(fleet=fleet, after=after), timeout_s=timeout_s)
        page = _VIEWS.validate_python(answer)
        if not page:
            return found
        found += page
        after = f"{page[-1].fleet}/{page[-1].device}"
