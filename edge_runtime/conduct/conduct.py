"""How the device behaves at the moment: gathers what `policy` decides by, and keeps what it decided."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from edge_runtime.condition.readings import DeviceReadings
from edge_runtime.conduct.policy import (
    Choice,
    Conditions,
    Decisions,
    Situation,
    choose_transport,
    decide,
    heartbeat_interval_s,
    tightened,
)
from edge_runtime.letters.sending import Grant
from edge_runtime.link.link import Measured
from edge_runtime.logs import Log
from edge_runtime.settings import EdgeSettings, OwnerLimits
from schemas.events import LANES, Lane
from schemas.registry import Twin

log = Log(__name__)

LOOK_S = 2.0
"""How old the decisions may be."""
MEASURES = ("round_trip_s", "loss_ratio", "up_bytes_per_s")
"""They change at every look and stand among the figures of the status."""
WISHES = {"max_temp_c": "throttle_temp_c"}
"""Limits that the twin calls otherwise."""


class Conduct:
    """The present decisions.

    Args:
        settings: the owner's.
        readings: of the device.
        twin: the platform's wishes.
        link: its figures; None while the courier does not answer.
        monotonic: seconds that never jump.
        offline_for_s: how long there has been no link already.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        readings: DeviceReadings,
        twin: Callable[[], Twin | None],
        link: Callable[[], Measured | None],
        monotonic: Callable[[], float] = time.monotonic,
        offline_for_s: float = 0.0,
    ) -> None:
        self._settings = settings
        self._readings = readings
        self._twin = twin
        self._link = link
        self._monotonic = monotonic
        self._offline_since: float | None = monotonic() - offline_for_s
        self._decisions: Decisions | None = None
        self._conditions: Conditions | None = None
        self._looked = float("-inf")
        self._failing = False

    @property
    def offline_s(self) -> float:
        """How long the courier has not answered."""
        self.decisions()
        return 0.0 if self._offline_since is None else self._monotonic() - self._offline_since

    def decisions(self) -> Decisions:
        """Those of now, at most `LOOK_S` old; while a sensor cannot be read, by what was read last and by the link."""
        if self._decisions is None or self._monotonic() >= self._looked + LOOK_S:
            try:
                return self.look()
            except Exception as error:  # noqa: BLE001 - the agent's chore looks as well: it shows in the status
                # Letters and heartbeats hang on what is decided here, whatever a probe meets.
                if not self._failing:
                    log.unexpected("conduct.not_decided", error)
                self._failing, self._looked = True, self._monotonic()
            return self._decide(linked(self._conditions or unknown_conditions(self._settings), self._link()))
        return self._decisions

    def look(self) -> Decisions:
        """Decide anew. Raises whatever a probe raises."""
        twin = self._twin()
        asked_s = heartbeat_interval_s(self._settings.heartbeat_s, twin)
        conditions = self._readings.conditions(self._link(), asked_s, tightened(self._settings.limits, twin))
        found = self._decide(conditions)
        self._looked, self._failing = self._monotonic(), False
        return found

    def _decide(self, conditions: Conditions) -> Decisions:
        before = self._decisions
        found = decide(conditions, before.quality if before else "offline")
        if found.quality != "offline":
            self._offline_since = None
        elif self._offline_since is None:
            self._offline_since = self._monotonic()
        if before is not None and (before.quality, before.mode, before.bulk) != (found.quality, found.mode, found.bulk):
            why = found.reasons
            log.info("conduct.changed", quality=found.quality, mode=found.mode, bulk=found.bulk, why=why["quality"])
        self._decisions, self._conditions = found, conditions
        return found

    def grant(self) -> Grant:
        """What the postman may do."""
        decisions = self.decisions()
        return Grant(decisions.window, decisions.bulk, decisions.congestion)

    def choice(self, lane: Lane, waiting_bytes: int, *, neighbours: int, folder: bool) -> Choice:
        """Which way the letters of a lane go now.

        Args:
            lane: whose letters.
            waiting_bytes: how much of them waits.
            neighbours: devices in reach that carry for others.
            folder: whether a folder for bundles is there.
        """
        offline_s, decisions = self.offline_s, self.decisions()
        assert self._conditions is not None, "decided just now"
        return choose_transport(
            Situation(
                quality=decisions.quality,
                offline_s=offline_s,
                neighbours=neighbours,
                folder=folder,
                battery_percent=self._conditions.battery_percent,
                charging=self._conditions.charging,
                lane=lane,
                waiting_bytes=waiting_bytes,
                min_battery_percent=self._conditions.limits.min_battery_percent,
            )
        )

    def ways(self, *, neighbours: int, folder: bool) -> dict[str, dict[str, str]]:
        """The way of each lane for a letter that has waited as long as the link has been away."""
        choices = {lane: self.choice(lane, 1, neighbours=neighbours, folder=folder) for lane in LANES}
        return {lane: dataclasses.asdict(choice) for lane, choice in choices.items()}

    def explanation(self, *, neighbours: int = 0, folder: bool = False) -> dict[str, Any]:
        """Decisions with their reasons, for `causeway-edge explain`. Arguments as of `choice`."""
        decisions = self.decisions()
        assert self._conditions is not None, "decided just now"
        found = explained(self._conditions, decisions, self._settings.limits, self._twin())
        return found | {"ways": self.ways(neighbours=neighbours, folder=folder)}


def unknown_conditions(settings: EdgeSettings) -> Conditions:
    """Of a device that nothing can be read from: as offline, so that nothing bulky moves on what may cost money."""
    return Conditions(
        answered=False,
        round_trip_s=None,
        loss_ratio=None,
        up_bytes_per_s=None,
        network="unknown",
        metered=True,
        battery_percent=None,
        charging=None,
        discharging=None,
        temp_c=None,
        memory_mb=None,
        heartbeat_s=heartbeat_interval_s(settings.heartbeat_s, None),
        limits=settings.limits,
    )


def linked(conditions: Conditions, link: Measured | None) -> Conditions:
    """The same of a device with other figures of its link; None as of `Conduct`."""
    return dataclasses.replace(
        conditions,
        answered=link is not None,
        round_trip_s=link.round_trip_s if link else None,
        loss_ratio=link.loss_ratio if link else None,
        up_bytes_per_s=link.up_bytes_per_s if link else None,
    )


def explained(conditions: Conditions, decisions: Decisions, owner: OwnerLimits, twin: Twin | None) -> dict[str, Any]:
    """Everything that a person may ask about: conditions, decisions, reasons, whose limit counts."""
    held = dataclasses.asdict(decisions)
    reasons = held.pop("reasons")
    facts = {name: value for name, value in dataclasses.asdict(conditions).items() if name not in {"limits", *MEASURES}}
    return {
        "decisions": {name: {"value": value, "why": reasons[name]} for name, value in held.items()},
        "conditions": facts,
        "limits": limits_explained(owner, twin),
    }


def limits_explained(owner: OwnerLimits, twin: Twin | None) -> dict[str, Any]:
    """Each limit with the owner's word, the platform's wish and what counts."""
    counts = tightened(owner, twin).model_dump()
    wishes = twin.model_dump() if twin is not None else {}
    return {
        name: {"owner": value, "platform": wishes.get(WISHES.get(name, name)), "counts": counts[name]}
        for name, value in owner.model_dump().items()
    }
