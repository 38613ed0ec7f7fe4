"""Do the signed release, the signed assignment and this device agree? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from edge_runtime.ota.state import SlotState, activations_on
from schemas.ids import Address
from schemas.ota import Assign, Gates, ReleaseCustom, Stage
from schemas.registry import Capabilities, Heartbeat

_MATURITY: dict[Stage, int] = {"development": 0, "test": 1, "production": 2}


@dataclass(frozen=True, slots=True)
class Release:
    """What the verified metadata says of a target."""

    sha256: str
    length: int
    custom: ReleaseCustom
    floor: int
    revoked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Device:
    """What a release must fit."""

    address: Address
    stage: Stage
    capabilities: Capabilities
    max_activations_per_day: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, as a word for counters and a sentence for people."""

    reason: str
    message: str


def check_install(assign: Assign, release: Release, device: Device, state: SlotState, now: datetime) -> Refusal | None:
    """The first thing that forbids an installation; None if nothing does."""
    return (
        _agreement(assign, release)
        or _standing(release.custom, max(release.floor, state.floor), release.revoked)
        or _fit(release.custom, device)
        or _moment(assign, device, state, now)
    )


def check_rollback(
    assign: Assign, staged: ReleaseCustom | None, device: Device, state: SlotState, now: datetime
) -> Refusal | None:
    """The same for going back to what ran before, which needs only that it was not revoked."""
    if staged is None or state.previous != assign.sha256:
        return Refusal(
            "no_previous",
            f"{assign.sha256[:12]} is not what ran before on this device; roll {assign.version} out instead",
        )
    if staged.version in state.revoked:
        return Refusal("revoked", f"{staged.model} {staged.version} was revoked")
    return _moment(assign, device, state, now)


def check_gates(gates: Gates, reading: Heartbeat, capabilities: Capabilities) -> Refusal | None:
    """What holds an installation back for now. A reading that is missing is not zero, and does not pass."""
    battery, heat = reading.battery_percent, reading.temp_c
    if (
        gates.min_battery_percent is not None
        and (capabilities.battery or battery is not None)
        and (battery is None or battery < gates.min_battery_percent)
    ):
        shown = "unknown" if battery is None else f"{battery:g} %"
        return Refusal("battery", f"battery is {shown}, needed are {gates.min_battery_percent:g} %")
    if (
        gates.max_temp_c is not None
        and (capabilities.thermal or heat is not None)
        and (heat is None or heat > gates.max_temp_c)
    ):
        shown = "unknown" if heat is None else f"{heat:g} C"
        return Refusal("heat", f"temperature is {shown}, allowed are {gates.max_temp_c:g} C")
    if gates.unmetered and reading.network.metered:
        return Refusal("metered", "the link is metered")
    return None


def _agreement(assign: Assign, release: Release) -> Refusal | None:
    custom = release.custom
    pairs: Sequence[tuple[str, object, object]] = (
        ("wrong_digest", assign.sha256, release.sha256),
        ("wrong_length", assign.length, release.length),
        ("wrong_model", assign.model, custom.model),
        ("wrong_version", assign.version, custom.version),
        ("wrong_seq", assign.seq, custom.seq),
    )
    for reason, assigned, released in pairs:
        if assigned != released:
            return Refusal(
                reason,
                f"the assignment of {assign.target} says {assigned}, the signed release says {released}",
            )
    return None


def _standing(custom: ReleaseCustom, floor: int, revoked: Sequence[str]) -> Refusal | None:
    if custom.seq < floor:
        return Refusal("below_floor", f"{custom.model} {custom.version} has seq {custom.seq}, the floor is {floor}")
    if custom.version in revoked:
        return Refusal("revoked", f"{custom.model} {custom.version} was revoked")
    return None


def _fit(custom: ReleaseCustom, device: Device) -> Refusal | None:
    if custom.fleets and device.address.fleet not in custom.fleets:
        return Refusal("wrong_fleet", f"{custom.version} is for fleets {', '.join(custom.fleets)}")
    if _MATURITY[custom.stage] < _MATURITY[device.stage]:
        return Refusal("wrong_stage", f"{custom.version} is a {custom.stage} release, this device takes {device.stage}")
    for name, needed in custom.requires.items():
        if not _offers(device.capabilities, name, needed):
            return Refusal("wrong_hardware", f"{custom.version} requires {name} {needed}, which this device has not")
    return None


def _offers(capabilities: Capabilities, name: str, needed: str | int) -> bool:
    if name in {"ram_mb", "disk_mb"}:
        offered: int = getattr(capabilities, name)
        return str(needed).isdigit() and offered >= int(needed)
    if name in {"arch", "os"}:
        return bool(getattr(capabilities, name) == needed)
    return name in capabilities.runtimes


def _moment(assign: Assign, device: Device, state: SlotState, now: datetime) -> Refusal | None:
    if now > assign.deadline:
        return Refusal("deadline", f"it was to be begun by {assign.deadline.isoformat()}")
    done = activations_on(state, now.date())
    if state.digest != assign.sha256 and done >= device.max_activations_per_day:
        return Refusal(
            "activation_limit",
            f"{assign.model} was activated {done} times today, allowed are {device.max_activations_per_day} "
            "(limits.max_activations_per_day)",
        )
    return None
