"""`status.json`: what the agent last said of itself, for `causeway-edge status` and whoever looks after the device."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_runtime.errors import ConfigError

REPEAT_S = 30.0
"""How often news that has not changed is written all the same; flash wears out."""


class StatusFile:
    """Writes news, whole at any time but not fsynced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, Any] = {}
        self._written = float("-inf")

    def write(self, status: dict[str, Any], figures: Mapping[str, Any] | None = None) -> None:
        """Replace the file if there is news.

        Args:
            status: what counts as news when it changes.
            figures: what changes all the time, and is written along.

        Raises:
            OSError: if the disk does not do its part.
        """
        now = time.monotonic()
        if status == self._last and now < self._written + REPEAT_S:
            return
        text = json.dumps(
            status | {"figures": figures or {}, "updated": datetime.now(UTC).isoformat(timespec="seconds")}, default=str
        )
        temporary = self._path.with_name(f".{self._path.name}.new")
        temporary.write_text(text)
        temporary.chmod(0o600)
        temporary.replace(self._path)
        self._last, self._written = status, now


def read_status(path: Path) -> dict[str, Any]:
    """What the agent said last, with `running` for whether it still lives.

    Raises:
        ConfigError: if no agent ever ran here.
    """
    try:
        status: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"read status {path}: no agent has run on this state folder; start one with `causeway-edge run`"
        ) from error
    except OSError as error:
        raise ConfigError(f"read status {path}: {error.strerror}; run as the user that owns it") from error
    except ValueError as error:
        raise ConfigError(f"read status {path}: {error}; a running agent writes it anew in {REPEAT_S:g} s") from error
    status["running"] = _alive(status.get("pid"))
    return status


def as_text(status: dict[str, Any]) -> str:
    """A few lines for people."""
    outbox, lines = status.get("outbox", {}), []
    state = "connected" if status.get("connected") else f"not connected ({status.get('problem') or 'starting'})"
    if not status["running"]:
        state = "not running; start it with `causeway-edge run`"
    held = status.get("suspended")
    lines.append(f"{status.get('fleet')}/{status.get('device')}: {state}{', in quarantine' if held else ''}")
    lines += suspension(status)
    lines.append(f"  platform      {status.get('platform')} at {status.get('url')}")
    lines.append(
        f"  outbox        {outbox.get('waiting', 0)} waiting, {outbox.get('kept', 0)} receipted and kept, "
        f"{outbox.get('dropped', 0)} dropped, {outbox.get('refused', 0)} refused"
        + (f", {outbox['superseded']} replaced by newer ones" if outbox.get("superseded") else "")
        + (", new ones in memory" if outbox.get("storage") == "memory" else "")
    )
    lines += [
        f"  model         {model['name']} {model['digest'][:12]} revision {model['revision']}"
        for model in status.get("models", [])
    ]
    carriers = status.get("carriers")
    if carriers and not status.get("connected"):
        lines.append(f"  letters go    {carriers['transport']}: {_why(status, carriers)}")
    if carriers and carriers["carried"]["fragments"]:
        carried = carriers["carried"]
        lines.append(f"  carries       {carried['fragments']} fragments of others, {carried['bytes']} bytes")
    if status.get("refusals"):
        lines.append("  refused       " + ", ".join(f"{count} {why}" for why, count in status["refusals"].items()))
    lines += [f"  problem       {problem}" for problem in status.get("problems", [])]
    lines.append(f"  credentials   until {status.get('credentials_expire')}")
    lines.append(f"  as of         {status.get('updated')}")
    return "\n".join(lines)


def suspension(status: Mapping[str, Any]) -> list[str]:
    """Why the platform takes no letters of this device, and what to do; nothing if it takes them."""
    held = status.get("suspended")
    if not held:
        return []
    release = f"causeway device release {status.get('device')} --fleet {status.get('fleet')}"
    return [
        f"  quarantine    since {held['since']}: {held['message']}",
        "  what to do    letters wait here until it ends. If this device is to stay, switch the other one off; then",
        f"                `{release}` at the platform.",
        "                If it is the copy, empty its state folder and enrol it with a token of its own",
    ]


def _why(status: Mapping[str, Any], carriers: Mapping[str, Any]) -> str:
    """The newest reason for the way that letters go; the one of `carriers` is as old as the way."""
    ways = status.get("figures", {}).get("explanation", {}).get("ways", {}).values()
    return next((way["reason"] for way in ways if way["transport"] == carriers["transport"]), str(carriers["reason"]))


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
