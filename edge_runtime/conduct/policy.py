"""How the device behaves under its owner's limits, the platform's wishes and its own condition. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edge_runtime.settings import OwnerLimits
from schemas.events import Lane
from schemas.registry import Heartbeat, Quality, Twin

DEFAULT_HEARTBEAT_S = 30.0


def heartbeat_interval_s(owner: float | None, twin: Twin | None) -> float:
    """The owner's interval, else the platform's, else 30 s."""
    if owner is not None:
        return owner
    return twin.heartbeat_s if twin is not None else DEFAULT_HEARTBEAT_S


def tightened(limits: OwnerLimits, twin: Twin | None) -> OwnerLimits:
    """The owner's limits; the twin may only tighten them."""
    if twin is None:
        return limits
    update: dict[str, float] = {}
    if twin.max_cpu_percent is not None:
        update["max_cpu_percent"] = max(1.0, min(limits.max_cpu_percent, twin.max_cpu_percent))
    if twin.min_battery_percent is not None:
        update["min_battery_percent"] = max(limits.min_battery_percent, twin.min_battery_percent)
    if twin.throttle_temp_c is not None:
        update["max_temp_c"] = min(limits.max_temp_c, twin.throttle_temp_c)
    return limits.model_copy(update=update)


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whether work may start; `reason` and `message` say why not."""

    allowed: bool
    reason: str | None = None
    message: str = ""


def may_work(limits: OwnerLimits, reading: Heartbeat, *, training: bool) -> Allowance:
    """Whether a task (or training) may start now. A reading that is missing holds nothing back."""
    what = "training" if training else "tasks"
    if not (limits.training if training else limits.tasks):
        return Allowance(allowed=False, reason="owner_limits", message=f"the owner of this device allows no {what}")
    battery = reading.battery_percent
    if battery is not None and battery < limits.min_battery_percent and not _powered(reading):
        message = f"battery at {battery:g} %, the limit is {limits.min_battery_percent:g} %"
        return Allowance(allowed=False, reason="battery", message=message)
    if reading.temp_c is not None and reading.temp_c > limits.max_temp_c:
        message = f"{reading.temp_c:g} degrees C, the limit is {limits.max_temp_c:g}"
        return Allowance(allowed=False, reason="heat", message=message)
    return Allowance(allowed=True)


# The link ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Up to where a quality class reaches."""

    round_trip_s: float
    loss_ratio: float


LIMITS: dict[Quality, Limits] = {
    "excellent": Limits(0.1, 0.01),
    "good": Limits(0.4, 0.03),
    "fair": Limits(1.5, 0.10),
}
"""Beyond the last one it is poor."""
BETTER = 0.8
"""A class is left for a better one only below this share of the better one's limits, so that it does not flap."""
SLOW_BYTES_PER_S = 16_000
"""A link that is known to be slower is fair at best, however quickly it answers."""
LOW_RAM_MB = 1_024
LOW_RAM_PIECES_BYTES = 128 * 1024
MAX_HEARTBEAT_S = 3_600.0

_ON: dict[Quality, str] = {
    "excellent": "on an excellent link",
    "good": "on a good link",
    "fair": "on a fair link",
    "poor": "on a poor link",
    "offline": "while offline",
}

Bulk = Literal["moves", "yields", "held"]
"""`yields`: only while no other letter waits."""
Congestion = Literal["system", "bbr"]
"""How TCP finds its rate: as the system has it, or by BBR, which does not take every lost packet for a full line."""
Mode = Literal["balanced", "performance", "battery_save", "thermal_throttle", "low_ram"]
"""The same words as the profiles of `CAUSEWAY_PROFILE`."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a quality class grants.

    Attributes:
        window: letters of a lane on their way at most.
        heartbeat_factor: times the interval that was asked for.
        pieces_bytes: pieces of artifacts asked for at a time; always at least one piece.
        bulk: whether bulk moves.
        congestion: how TCP finds its rate upwards.
    """

    window: int
    heartbeat_factor: float
    pieces_bytes: int
    bulk: Bulk
    congestion: Congestion


TERMS: dict[Quality, Terms] = {
    "excellent": Terms(128, 1.0, 1 << 20, "moves", "system"),
    "good": Terms(96, 1.0, 512 * 1024, "moves", "system"),
    "fair": Terms(64, 1.5, 256 * 1024, "moves", "system"),
    "poor": Terms(32, 2.5, 64 * 1024, "yields", "bbr"),
    "offline": Terms(32, 1.0, 64 * 1024, "held", "system"),
}
"""Factors stay below 3: after three intervals the registry takes a device for silent."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Everything that the decisions come from; None: not known.

    Attributes:
        answered: hello was answered on the present connection.
        round_trip_s: smoothed.
        loss_ratio: share of what was sent that had to be sent again.
        up_bytes_per_s: reached when there was more to send than went.
        heartbeat_s: interval that the owner or the platform asks for.
        limits: the owner's, tightened by the twin.
    """

    answered: bool
    round_trip_s: float | None
    loss_ratio: float | None
    up_bytes_per_s: float | None
    network: str
    metered: bool
    battery_percent: float | None
    charging: bool | None
    discharging: bool | None
    temp_c: float | None
    memory_mb: int | None
    heartbeat_s: float
    limits: OwnerLimits


@dataclass(frozen=True, slots=True)
class Decisions:
    """What holds now; `reasons` has a line for each other field."""

    quality: Quality
    mode: Mode
    window: int
    heartbeat_s: float
    pieces_bytes: int
    bulk: Bulk
    congestion: Congestion
    reasons: Mapping[str, str]


def decide(conditions: Conditions, before: Quality = "offline") -> Decisions:
    """All decisions of the moment.

    Args:
        conditions: of the moment.
        before: the class until now, for its hysteresis.
    """
    quality, why_quality = classify(conditions, before)
    mode, why_mode = mode_of(conditions)
    terms = TERMS[quality]
    bulk, why_bulk = _bulk(conditions, quality, mode)
    pieces = min(terms.pieces_bytes, LOW_RAM_PIECES_BYTES) if mode == "low_ram" else terms.pieces_bytes
    # A charger makes no line wider, so window and bulk stay; waking up more often is what it pays for.
    factor = {"battery_save": max(terms.heartbeat_factor, 2.0), "performance": 1.0}.get(mode, terms.heartbeat_factor)
    heartbeat_s = max(conditions.heartbeat_s, min(MAX_HEARTBEAT_S, conditions.heartbeat_s * factor))
    here = _ON[quality]
    cause = here if factor == terms.heartbeat_factor else f"in {mode} mode"
    times = f", times {factor:g} {cause}" if factor > 1 or cause != here else ""
    reasons = {
        "quality": why_quality,
        "mode": why_mode,
        "window": f"letters of a lane on their way at most {here}",
        "heartbeat_s": f"{conditions.heartbeat_s:g} s asked for{times}",
        "pieces_bytes": f"pieces asked for at once {here}"
        + (", less in low_ram mode" if pieces < terms.pieces_bytes else "")
        + "; an update is never held back, since somebody who may has ordered it",
        "bulk": why_bulk,
        "congestion": f"how TCP finds its rate {here}; what the kernel does stands among the figures",
    }
    return Decisions(quality, mode, terms.window, heartbeat_s, pieces, bulk, terms.congestion, reasons)


def classify(conditions: Conditions, before: Quality) -> tuple[Quality, str]:
    """Class of the link, and the figures that it comes from."""
    if not conditions.answered:
        return "offline", "the courier has not answered on a present connection"
    trip, loss, rate = conditions.round_trip_s, conditions.loss_ratio, conditions.up_bytes_per_s
    figures = [
        "no round trip measured yet" if trip is None else f"round trip {trip * 1_000:.0f} ms",
        "too little sent to know the loss" if loss is None else f"{loss:.1%} sent again",
    ]
    if rate is not None:
        figures.append(f"{rate / 1_000:.1f} kB/s up")
    if trip is None and loss is None:
        return "good", ", ".join(figures)
    slow = rate is not None and rate < SLOW_BYTES_PER_S
    order = list(TERMS)
    for quality, limits in LIMITS.items():
        if slow and quality != "fair":
            continue
        better = before != "offline" and order.index(quality) < order.index(before)
        share = BETTER if better else 1.0
        if (trip or 0.0) <= limits.round_trip_s * share and (loss or 0.0) <= limits.loss_ratio * share:
            return quality, ", ".join(figures)
    return "poor", ", ".join(figures)


def mode_of(conditions: Conditions) -> tuple[Mode, str]:
    """How the device has to spare itself; the most pressing of several reasons."""
    limits, temp, battery = conditions.limits, conditions.temp_c, conditions.battery_percent
    if temp is not None and temp > limits.max_temp_c:
        return "thermal_throttle", f"{temp:g} degrees C, the limit is {limits.max_temp_c:g}"
    if battery is not None and battery < limits.min_battery_percent and not _powered(conditions):
        why = f"battery at {battery:g} % and not charging, the limit is {limits.min_battery_percent:g} %"
        return "battery_save", why
    if conditions.memory_mb is not None and conditions.memory_mb < LOW_RAM_MB:
        return "low_ram", f"{conditions.memory_mb} MB of memory, low is below {LOW_RAM_MB} MB"
    if _powered(conditions):
        return "performance", "it is charging"
    return "balanced", "nothing presses" if battery is None else f"battery at {battery:g} %"


def _bulk(conditions: Conditions, quality: Quality, mode: Mode) -> tuple[Bulk, str]:
    if quality == "offline":
        return "held", "the link is offline"
    if conditions.metered and not conditions.limits.bulk_on_metered:
        return "held", f"the link ({conditions.network}) is metered, and limits.bulk_on_metered is false"
    if mode == "battery_save":
        return "held", mode_of(conditions)[1]
    if mode == "thermal_throttle":
        return "yields", f"{mode_of(conditions)[1]}: only while no other letter waits"
    if quality == "poor":
        return "yields", "the link is poor: only while no other letter waits"
    return "moves", f"the link is {quality}"


def _powered(reading: Conditions | Heartbeat) -> bool:
    return reading.charging is True and reading.discharging is not True


# The way -------------------------------------------------------------------------------------------------------------

PATIENCE_S: dict[Lane, float] = {"control": 5.0, "normal": 30.0, "bulk": 300.0}
"""How long a link may be down before another way is looked for; a short break is over sooner than a detour."""
FOLDER_BYTES = 8 << 20
"""So much is for a stick rather than for a neighbour's radio, where there is a choice."""
DETOUR_BYTES = 256 * 1024
"""On a poor link so much bulk goes by a neighbour, if there is one."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One lane's letters, and the ways that there are.

    Attributes:
        quality: of the own link.
        offline_s: how long it has been offline.
        neighbours: devices in reach that carry for others.
        folder: whether a folder for bundles is there, a stick for one.
        lane: whose letters wait.
        waiting_bytes: how much of them.
        min_battery_percent: below it others are not troubled for anything that can wait.
    """

    quality: Quality
    offline_s: float
    neighbours: int
    folder: bool
    battery_percent: float | None
    charging: bool | None
    lane: Lane
    waiting_bytes: int
    min_battery_percent: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The way to take, and why."""

    transport: Literal["direct", "neighbour", "folder", "wait"]
    reason: str


def choose_transport(situation: Situation) -> Choice:
    """Which way the letters of a lane go now."""
    here, patience_s = situation, PATIENCE_S[situation.lane]
    if here.quality != "offline":
        if here.quality == "poor" and here.lane == "bulk" and here.neighbours and here.waiting_bytes >= DETOUR_BYTES:
            return Choice("neighbour", f"the link is poor and {here.waiting_bytes} bytes of bulk wait")
        return Choice("direct", f"the link is {here.quality}")
    if not here.waiting_bytes:
        return Choice("wait", "nothing waits")
    if here.offline_s < patience_s:
        return Choice("wait", f"offline for {here.offline_s:.0f} s, {here.lane} letters wait {patience_s:.0f} s")
    return _detour(here, f"offline for {here.offline_s:.0f} s")


def _detour(here: Situation, down: str) -> Choice:
    battery = here.battery_percent
    low = battery is not None and battery < here.min_battery_percent and not here.charging
    if here.folder:
        why = "no neighbour in reach" if not here.neighbours else ""
        if here.neighbours and here.waiting_bytes >= FOLDER_BYTES:
            why = f"{here.waiting_bytes} bytes are much for a neighbour"
        if low:
            why = f"battery at {battery:g} % spares the radio"
        if why:
            return Choice("folder", f"{down}; a folder is there, and {why}")
    if not here.neighbours:
        return Choice("wait", f"{down}; no neighbour is in reach and there is no folder")
    if low and here.lane != "control":
        return Choice("wait", f"{down}; at battery {battery:g} % only control letters use the radio")
    return Choice("neighbour", f"{down}; {here.neighbours} in reach")
