"""What the registry tells of devices, bounded to one message. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from schemas.ids import Address
from services.kit.api.registry import DeviceView
from services.kit.devices import DeviceRecord
from services.registry.table import Sight, read_heartbeat


def view(record: DeviceRecord, sight: Sight, *, heartbeat: bool) -> dict[str, Any]:
    """One device, ready for JSON."""
    shown = read_heartbeat(sight.heartbeat) if heartbeat and sight.heartbeat else None
    return DeviceView(
        fleet=record.fleet,
        device=record.device,
        standing=record.standing,
        trust_level=record.trust_level,
        quarantine=record.quarantine,
        online=sight.online,
        last_seen=sight.last_seen,
        enrolled_at=record.enrolled_at,
        jwt_expires=record.jwt_expires,
        capabilities=record.capabilities,
        labels=record.labels,
        heartbeat=shown,
    ).model_dump(mode="json")


def page(
    addresses: Sequence[Address], show: Callable[[Address], dict[str, Any]], after: str | None, max_bytes: int
) -> list[dict[str, Any]]:
    """Devices behind `after` (`fleet/device`) in the order given, until the answer is full."""
    shown: list[dict[str, Any]] = []
    size = 0
    for address in addresses:
        if after is not None and address <= Address(*after.split("/")):
            continue
        entry = show(address)
        size += len(json.dumps(entry, separators=(",", ":"))) + 1
        if size > max_bytes and shown:
            break
        shown.append(entry)
    return shown
