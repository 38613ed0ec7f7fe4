"""`causeway-edge explain`: what the device decides at present, and why.

The agent's own word if it runs; otherwise what it would decide offline, from the sensors and the settings.
"""

from __future__ import annotations

import time
from typing import Any

from edge_runtime.carriers.custodian import MAX_FRAGMENTS_CARRIED
from edge_runtime.carriers.explained import NO_CUSTODY, as_lines
from edge_runtime.carriers.listing import is_there
from edge_runtime.carriers.store import CarriedStore
from edge_runtime.condition.readings import DeviceReadings
from edge_runtime.condition.status import read_status, suspension
from edge_runtime.conduct.conduct import Conduct
from edge_runtime.conduct.policy import PATIENCE_S
from edge_runtime.errors import ConfigError
from edge_runtime.folder import EdgeFolder
from edge_runtime.household import stored_twin
from edge_runtime.identity import load_identity
from edge_runtime.letters.inbox import Inbox
from edge_runtime.settings import EdgeSettings
from schemas.registry import Twin

_UNITS = {"heartbeat_s": "s", "pieces_bytes": "bytes", "window": "letters"}


def explanation(settings: EdgeSettings) -> dict[str, Any]:
    """Decisions with their reasons; `source` says whose word it is.

    Raises:
        ConfigError: if the status or an override of a sensor cannot be read.
        OutboxError: if what the device holds cannot be read.
    """
    folder = EdgeFolder(settings.state)
    try:
        status = read_status(folder.status)
    except ConfigError as error:
        # None was ever written: that is no obstacle to explaining.
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        status = {}
    if status.get("running") and "explanation" in status.get("figures", {}):
        figures = dict(status["figures"])
        found: dict[str, Any] = figures.pop("explanation")
        held = {name: status.get(name) for name in ("fleet", "device", "suspended")}
        carriers = {"carriers": status.get("carriers")}
        return {"source": "agent", "as_of": status.get("updated"), **held, **found, **carriers, "figures": figures}
    conduct = Conduct(
        settings, DeviceReadings(settings), lambda: _twin(folder), lambda: None, offline_for_s=max(PATIENCE_S.values())
    )
    conduct.look()  # what cannot be read is said here, and not guessed
    stick = settings.carriers.folder
    found = conduct.explanation(folder=stick is not None and is_there(stick))
    return {"source": "computed", "as_of": None, **found, "carriers": _custody(settings, folder), "figures": {}}


def as_text(found: dict[str, Any]) -> str:
    """For people."""
    if found["source"] == "agent":
        lines = [f"as the running agent decided at {found['as_of']}:", *suspension(found)]
    else:
        lines = [
            "no agent runs here; this is what it would decide after minutes offline, by the sensors and the settings:"
        ]
    for name, decision in found["decisions"].items():
        unit = f" {_UNITS[name]}" if name in _UNITS else ""
        lines.append(f"  {name:13} {decision['value']}{unit}: {decision['why']}")
    lines += [f"  way of {lane:6} {choice['transport']}: {choice['reason']}" for lane, choice in found["ways"].items()]
    lines += ["carriers:", *as_lines(found["carriers"])]
    lines.append("measured:")
    lines += [f"  {name:18} {_said(value)}" for name, value in found["figures"].items()]
    lines += [f"  {name:18} {_said(value)}" for name, value in found["conditions"].items()]
    lines.append("limits (the owner's, which the platform may only tighten):")
    for name, limit in found["limits"].items():
        wish = "" if limit["platform"] is None else f", the platform wishes {limit['platform']}"
        lines.append(f"  {name:24} {limit['counts']} (owner {limit['owner']}{wish})")
    return "\n".join(lines)


def _custody(settings: EdgeSettings, folder: EdgeFolder) -> dict[str, Any] | None:
    """What this device holds for others and for itself; None where carriers are off."""
    if not settings.carriers.enabled:
        return None
    identity = load_identity(folder.identity) if folder.carriers.exists() else None
    room = {"bytes": settings.carriers.max_bytes if settings.carriers.carry else 0, "fragments": MAX_FRAGMENTS_CARRIED}
    if identity is None:
        return {**NO_CUSTODY, "room": room}
    store = CarriedStore(folder.carriers)
    try:
        return store.custody(identity.address.source) | {"room": room}
    finally:
        store.close()


def _twin(folder: EdgeFolder) -> Twin | None:
    if not folder.inbox.exists():
        return None
    inbox = Inbox(folder.inbox, time.time)
    try:
        return stored_twin(inbox)
    finally:
        inbox.close()


def _said(value: object) -> str:
    if value is None:
        return "not known"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
