"""What `causeway-edge explain` says of the carriers, from the part of the status that is theirs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_CUSTODY: Mapping[str, Any] = {
    "carried": {"fragments": 0, "bytes": 0, "copies": 0, "unverified": 0},
    "own": {"fragments": 0, "copies": 0},
    "arriving": 0,
    "open_bundles": 0,
}
"""Of a device that has not met anybody yet."""


def as_lines(carriers: Mapping[str, Any] | None) -> list[str]:
    """For people; `carriers` is what `CarrierService.status` made, or `custody` alone where no agent runs."""
    if carriers is None:
        return ["  off: carriers.enabled is false"]
    if "own" in carriers:
        told = {"custody": _custody(carriers), "own": _own(carriers)}
    else:
        held = carriers["carried"]
        text = f"{held['fragments']} fragments, {held['bytes']} bytes of others"
        told = {"custody": f"{text}; the agent that wrote this is of an earlier version and says no more"}
    if "transport" in carriers:
        told = {"way now": f"{carriers['transport']}: {carriers['reason']}"} | told
        told |= {"neighbours": _neighbours(carriers["neighbours"]), "folder": _folder(carriers)}
    return [f"  {name:18} {text}" for name, text in told.items()]


def _custody(carriers: Mapping[str, Any]) -> str:
    held, room = carriers["carried"], carriers["room"]
    if not room["bytes"]:
        return "nothing: carriers.carry is false"
    text = (
        f"{held['fragments']} of {room['fragments']} fragments, {held['bytes']} of {room['bytes']} bytes of others, "
        f"{held['copies']} copies to give"
    )
    return text + (f"; {held['unverified']} that nobody here can check" if held["unverified"] else "")


def _own(carriers: Mapping[str, Any]) -> str:
    own = carriers["own"]
    return (
        f"{carriers['open_bundles']} open bundles, {own['fragments']} fragments, {own['copies']} copies to give; "
        f"{carriers['arriving']} fragments arrived and wait for the rest"
    )


def _neighbours(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "off: neighbours.enabled is false"
    seen = ", ".join(found["in_sight"]) or "none"
    last = found.get("last_met")
    when = f"the last with {last['peer']} at {last['at']}" if last else "none yet"
    turned = ", ".join(f"{count} {why}" for why, count in sorted(found["refusals"].items()))
    return f"in sight: {seen}; {found['meetings']} meetings, {when}" + (f"; refused: {turned}" if turned else "")


def _folder(carriers: Mapping[str, Any]) -> str:
    if carriers["folder"] is None:
        return "none is set; `causeway-edge bundle` works with any"
    last = carriers.get("folder_exchange")
    if last is None:
        return f"{carriers['folder']}: not exchanged with yet"
    return (
        f"{carriers['folder']}: at {last['at']} took {last['taken']} fragments, wrote {last['written']}, "
        f"refused {last['refused']}, left {last['left']} unread"
    )
