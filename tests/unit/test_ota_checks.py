from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from edge_runtime.ota.checks import Device, Release, check_gates, check_install, check_rollback
from edge_runtime.ota.state import SlotState
from schemas.ids import Address
from schemas.ota import Assign, Gates
from schemas.registry import Capabilities, Heartbeat, Network
from tests.support.device import NOW, SESSION
from tests.support.models import Made, make_release

CAPABILITIES = Capabilities(
    os="linux",
    arch="aarch64",
    python="3.11",
    agent="0",
    cpu_count=4,
    ram_mb=512,
    disk_mb=2_000,
    runtimes={"onnxruntime": "1.20"},
)
STATE = SlotState(slot="digits")


def assign(made: Made, **changes: object) -> Assign:
    fields: dict[str, object] = {
        "model": "digits",
        "target": made.target,
        "version": made.custom.version,
        "sha256": made.digest,
        "length": len(made.model),
        "seq": made.custom.seq,
        "action": "install",
        "rollout": SESSION,
        "wave": 0,
        "deadline": NOW + timedelta(hours=1),
    }
    return Assign.model_validate(fields | changes)


def device(**changes: Any) -> Device:
    fields = {"address": Address("harbour", "cam-1"), "stage": "production", "capabilities": CAPABILITIES}
    return Device(**fields | {"max_activations_per_day": 5} | changes)


def verdict(made: Made, *, state: SlotState = STATE, thing: Device | None = None, **changes: object) -> str | None:
    release = Release(made.digest, len(made.model), made.custom, made.floor, made.revoked)
    refusal = check_install(assign(made, **changes), release, thing or device(), state, NOW)
    return refusal.reason if refusal else None


@pytest.mark.parametrize(
    ("custom", "reason"),
    [
        ({}, None),
        ({"fleets": ["harbour", "lake"]}, None),
        ({"fleets": ["lake"]}, "wrong_fleet"),
        ({"stage": "test"}, "wrong_stage"),
        ({"stage": "development"}, "wrong_stage"),
        ({"requires": {"ram_mb": 512, "arch": "aarch64", "os": "linux", "onnxruntime": "1"}}, None),
        ({"requires": {"ram_mb": 513}}, "wrong_hardware"),
        ({"requires": {"disk_mb": "lots"}}, "wrong_hardware"),
        ({"requires": {"arch": "x86_64"}}, "wrong_hardware"),
        ({"requires": {"tensorrt": "10"}}, "wrong_hardware"),
    ],
)
def test_a_release_must_be_meant_for_this_device(custom: dict[str, object], reason: str | None) -> None:
    assert verdict(make_release(**custom)) == reason


def test_a_device_in_the_test_ring_takes_test_and_production() -> None:
    thing = device(stage="test")
    assert verdict(make_release(stage="production"), thing=thing) is None
    assert verdict(make_release(stage="test"), thing=thing) is None
    assert verdict(make_release(stage="development"), thing=thing) == "wrong_stage"


@pytest.mark.parametrize(
    ("signed_floor", "seen_floor", "revoked", "reason"),
    [
        (2, 0, (), None),
        (3, 0, (), "below_floor"),
        (0, 3, (), "below_floor"),
        (0, 0, ("1.0.0",), "revoked"),
        (0, 0, ("1.0.1",), None),
    ],
)
def test_the_highest_floor_and_the_revoked_versions_hold(
    signed_floor: int, seen_floor: int, revoked: tuple[str, ...], reason: str | None
) -> None:
    made = make_release(seq=2)
    made = Made(made.model, made.smoke, made.custom, floor=signed_floor, revoked=revoked)
    assert verdict(made, state=STATE.model_copy(update={"floor": seen_floor})) == reason


def test_deadline_and_daily_limit() -> None:
    made = make_release()
    assert verdict(made, deadline=NOW - timedelta(seconds=1)) == "deadline"
    worn = STATE.model_copy(update={"day": NOW.date(), "activations": 5})
    assert verdict(made, state=worn) == "activation_limit"
    assert verdict(made, state=worn.model_copy(update={"day": NOW.date() - timedelta(days=1)})) is None
    # What runs already may be confirmed as often as one likes.
    assert verdict(made, state=worn.model_copy(update={"digest": made.digest})) is None


def test_going_back_needs_the_previous_version_and_that_it_was_not_revoked() -> None:
    made = make_release()
    asked = assign(made, action="rollback")
    state = STATE.model_copy(update={"previous": made.digest})
    assert check_rollback(asked, made.custom, device(), state, NOW) is None
    missing = check_rollback(asked, None, device(), state, NOW)
    other = check_rollback(asked, made.custom, device(), STATE, NOW)
    gone = check_rollback(asked, made.custom, device(), state.model_copy(update={"revoked": ("1.0.0",)}), NOW)
    assert [refusal and refusal.reason for refusal in (missing, other, gone)] == [
        "no_previous",
        "no_previous",
        "revoked",
    ]


@pytest.mark.parametrize(
    ("gates", "reading", "made_of", "reason"),
    [
        (Gates(), {}, {}, None),
        (Gates(min_battery_percent=50), {}, {}, None),
        (Gates(min_battery_percent=50), {}, {"battery": True}, "battery"),
        (Gates(min_battery_percent=50), {"battery_percent": 0}, {}, "battery"),
        (Gates(min_battery_percent=50), {"battery_percent": 50}, {"battery": True}, None),
        (Gates(max_temp_c=60), {}, {"thermal": True}, "heat"),
        (Gates(max_temp_c=60), {"temp_c": 61}, {}, "heat"),
        (Gates(max_temp_c=60), {"temp_c": 0}, {"thermal": True}, None),
        (Gates(unmetered=True), {"network": Network(metered=True)}, {}, "metered"),
        (Gates(unmetered=True), {}, {}, None),
    ],
)
def test_a_reading_that_is_missing_is_not_zero(
    gates: Gates, reading: dict[str, Any], made_of: dict[str, bool], reason: str | None
) -> None:
    heartbeat = Heartbeat.model_validate({"session": SESSION, "uptime_s": 1} | reading)
    held = check_gates(gates, heartbeat, CAPABILITIES.model_copy(update=made_of))
    assert (held.reason if held else None) == reason
