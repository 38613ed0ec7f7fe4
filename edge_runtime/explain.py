"""`causeway-edge explain`: what the device decides at present, and why.

The agent's own word if it runs; otherwise what it would decide offline, from the sensors and the settings.
"""

from __future__ import annotations

import time
from typing import Any

from edge_runtime.conduct import Conduct
from edge_runtime.errors import ConfigError
from edge_runtime.folder import EdgeFolder
from edge_runtime.household import stored_twin
from edge_runtime.letters.inbox import Inbox
from edge_runtime.policy import PATIENCE_S
from edge_runtime.readings import DeviceReadings
from edge_runtime.settings import EdgeSettings
from edge_runtime.status import read_status
from schemas.registry import Twin

_UNITS = {"heartbeat_s": "s", "pieces_bytes": "bytes", "window": "letters"}


def explanation(settings: EdgeSettings) -> dict[str, Any]:
    """Decisions with their reasons; `source` says whose word it is.

    Raises:
        ConfigError: if the status or an override of a sensor cannot be read.
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
        return {"source": "agent", "as_of": status.get("updated"), **found, "figures": figures}
    conduct = Conduct(
        settings, DeviceReadings(settings), lambda: _twin(folder), lambda: None, offline_for_s=max(PATIENCE_S.values())
    )
    stick = settings.carriers.folder
    found = conduct.explanation(folder=stick is not None and stick.is_dir())
    return {"source": "computed", "as_of": None, **found, "figures": {}}


def as_text(found: dict[str, Any]) -> str:
    """For people."""
    if found["source"] == "agent":
        lines = [f"as the running agent decided at {found['as_of']}:"]
    else:
        lines = [
            "no agent runs here; this is what it would decide after minutes offline, by the sensors and the settings:"
        ]
    for name, decision in found["decisions"].items():
        unit = f" {_UNITS[name]}" if name in _UNITS else ""
        lines.append(f"  {name:13} {decision['value']}{unit}: {decision['why']}")
    lines += [f"  way of {lane:6} {choice['transport']}: {choice['reason']}" for lane, choice in found["ways"].items()]
    lines.append("measured:")
    lines += [f"  {name:18} {_said(value)}" for name, value in found["figures"].items()]
    lines += [f"  {name:18} {_said(value)}" for name, value in found["conditions"].items()]
    lines.append("limits (the owner's, which the platform may only tighten):")
    for name, limit in found["limits"].items():
        wish = "" if limit["platform"] is None else f", the platform wishes {limit['platform']}"
        lines.append(f"  {name:24} {limit['counts']} (owner {limit['owner']}{wish})")
    return "\n".join(lines)


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
