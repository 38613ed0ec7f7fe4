"""The tables of `policy`: every class, every profile, every way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.condition.probes import PROFILES, Probes, read_overrides
from edge_runtime.condition.readings import DeviceReadings
from edge_runtime.conduct.policy import (
    BETTER,
    DETOUR_BYTES,
    FOLDER_BYTES,
    LIMITS,
    LOW_RAM_PIECES_BYTES,
    PATIENCE_S,
    SLOW_BYTES_PER_S,
    TERMS,
    Conditions,
    Situation,
    choose_transport,
    classify,
    decide,
)
from edge_runtime.settings import EdgeSettings, OwnerLimits
from schemas.events import LANES

WELL = Conditions(
    answered=True,
    round_trip_s=0.03,
    loss_ratio=0.0,
    up_bytes_per_s=None,
    network="wifi",
    metered=False,
    battery_percent=None,
    charging=None,
    discharging=None,
    temp_c=None,
    memory_mb=4_096,
    heartbeat_s=30.0,
    limits=OwnerLimits(),
)
ORDER = list(TERMS)


@pytest.mark.parametrize(
    ("changes", "quality"),
    [
        ({}, "excellent"),
        ({"round_trip_s": 0.1, "loss_ratio": 0.01}, "excellent"),
        ({"round_trip_s": 0.101}, "good"),
        ({"loss_ratio": 0.011}, "good"),
        ({"round_trip_s": 0.4}, "good"),
        ({"round_trip_s": 0.401}, "fair"),
        ({"loss_ratio": 0.031}, "fair"),
        ({"round_trip_s": 1.5, "loss_ratio": 0.10}, "fair"),
        ({"round_trip_s": 1.51}, "poor"),
        ({"loss_ratio": 0.3}, "poor"),
        ({"up_bytes_per_s": SLOW_BYTES_PER_S - 1}, "fair"),
        ({"up_bytes_per_s": SLOW_BYTES_PER_S - 1, "loss_ratio": 0.3}, "poor"),
        ({"up_bytes_per_s": SLOW_BYTES_PER_S}, "excellent"),
        ({"round_trip_s": None, "loss_ratio": None}, "good"),
        ({"round_trip_s": None}, "excellent"),
        ({"answered": False}, "offline"),
    ],
)
def test_the_class_of_a_link(changes, quality) -> None:
    assert classify(replace(WELL, **changes), "offline")[0] == quality


def test_a_link_gets_worse_at_once_and_better_only_by_a_margin() -> None:
    edge = LIMITS["excellent"].round_trip_s
    assert classify(replace(WELL, round_trip_s=edge * 1.01), "excellent")[0] == "good"
    assert classify(replace(WELL, round_trip_s=edge * 0.99), "good")[0] == "good"
    assert classify(replace(WELL, round_trip_s=edge * BETTER), "good")[0] == "excellent"
    assert classify(replace(WELL, round_trip_s=edge * 0.99), "excellent")[0] == "excellent"


@given(st.floats(0, 10), st.floats(0, 1), st.sampled_from(ORDER))
def test_what_a_link_is_does_not_flap(round_trip_s, loss, before) -> None:
    conditions = replace(WELL, round_trip_s=round_trip_s, loss_ratio=loss)
    first = classify(conditions, before)[0]
    assert classify(conditions, first)[0] == first


@given(st.floats(0, 10), st.floats(0, 10), st.sampled_from(ORDER))
def test_a_longer_way_is_never_a_better_class(one, other, before) -> None:
    near, far = (classify(replace(WELL, round_trip_s=trip), before)[0] for trip in sorted((one, other)))
    assert ORDER.index(near) <= ORDER.index(far)


@pytest.mark.parametrize(
    ("quality", "window", "heartbeat_s", "pieces", "bulk", "congestion"),
    [
        ("excellent", 128, 30, 1_048_576, "moves", "system"),
        ("good", 96, 30, 524_288, "moves", "system"),
        ("fair", 64, 45, 262_144, "moves", "system"),
        ("poor", 32, 75, 65_536, "yields", "bbr"),
        ("offline", 32, 30, 65_536, "held", "system"),
    ],
)
def test_what_each_class_grants(quality, window, heartbeat_s, pieces, bulk, congestion) -> None:
    worst = {"excellent": 0.05, "good": 0.3, "fair": 1.0, "poor": 9.0, "offline": 0.05}[quality]
    found = decide(replace(WELL, round_trip_s=worst, answered=quality != "offline"))
    assert (found.quality, found.window, found.heartbeat_s) == (quality, window, heartbeat_s)
    assert (found.pieces_bytes, found.bulk, found.congestion) == (pieces, bulk, congestion)
    assert set(found.reasons) == {"quality", "mode", "window", "heartbeat_s", "pieces_bytes", "bulk", "congestion"}


PROFILED = {
    "battery_save": [("held", 60.0, 128, 1 << 20), ("held", 75.0, 32, 64 * 1024)],
    "thermal_throttle": [("yields", 30.0, 128, 1 << 20), ("yields", 75.0, 32, 64 * 1024)],
    "low_ram": [("moves", 30.0, 128, LOW_RAM_PIECES_BYTES), ("yields", 75.0, 32, 64 * 1024)],
    "performance": [("moves", 30.0, 128, 1 << 20), ("yields", 30.0, 32, 64 * 1024)],
    "balanced": [("moves", 30.0, 128, 1 << 20), ("yields", 75.0, 32, 64 * 1024)],
}
"""On an excellent link, and on a poor one; no two are the same."""
TRIPS_S = (0.01, 9.0)


def seen(environment: dict[str, str], round_trip_s: float = TRIPS_S[0]) -> Conditions:
    """What the probes make of an environment, over an excellent link unless the round trip says otherwise."""
    readings = DeviceReadings(EdgeSettings(), Probes(read_overrides(environment)))
    found = readings.conditions(None, 30.0, OwnerLimits())
    return replace(found, answered=True, round_trip_s=round_trip_s, loss_ratio=0.0)


def test_every_profile_is_tabled() -> None:
    assert set(PROFILED) == set(PROFILES)
    assert len({tuple(each) for each in PROFILED.values()}) == len(PROFILED), "a profile that changes nothing"


@pytest.mark.parametrize("profile", sorted(PROFILED))
def test_every_profile_drives_the_decisions(profile) -> None:
    calm = {"THERMAL": "normal", "MEMORY_GB": "4", "CHARGING": "", "NETWORK_TYPE": "wifi"}
    own = PROFILES[profile]
    # What the profile does not say is held still, whatever machine this runs on.
    environment = {"CAUSEWAY_PROFILE": profile}
    environment |= {} if own.temp_c is not None else {"THERMAL": calm["THERMAL"]}
    environment |= {} if own.memory_mb is not None else {"MEMORY_GB": calm["MEMORY_GB"]}
    environment |= {} if own.percent is not None else {"BATTERY": "70", "CHARGING": "no"}
    for round_trip_s, expected in zip(TRIPS_S, PROFILED[profile], strict=True):
        found = decide(seen(environment | {"NETWORK_TYPE": "wifi"}, round_trip_s))
        assert found.mode == profile
        assert (found.bulk, found.heartbeat_s, found.window, found.pieces_bytes) == expected


CHARGED = replace(WELL, battery_percent=100.0, charging=True, discharging=False, round_trip_s=9.0)


@pytest.mark.parametrize(
    ("changes", "mode", "bulk", "heartbeat_s"),
    [
        ({}, "performance", "yields", 30.0),
        ({"round_trip_s": 1.0}, "performance", "moves", 30.0),
        ({"battery_percent": 5.0}, "performance", "yields", 30.0),
        ({"metered": True}, "performance", "held", 30.0),
        ({"temp_c": 95.0}, "thermal_throttle", "yields", 75.0),
        ({"memory_mb": 512}, "low_ram", "yields", 75.0),
        ({"charging": False, "discharging": True}, "balanced", "yields", 75.0),
    ],
)
def test_a_charger_pays_for_heartbeats_but_makes_no_line_wider(changes, mode, bulk, heartbeat_s) -> None:
    found = decide(replace(CHARGED, **changes))
    assert (found.mode, found.bulk, found.heartbeat_s) == (mode, bulk, heartbeat_s)
    assert found.window == TERMS[found.quality].window
    assert ("performance mode" in found.reasons["heartbeat_s"]) == (mode == "performance")


@pytest.mark.parametrize(
    ("environment", "metered", "bulk"),
    [
        ({"NETWORK_TYPE": "wifi"}, False, "moves"),
        ({"NETWORK_TYPE": "lte"}, True, "held"),
        ({"NETWORK_TYPE": "wifi", "NETWORK_METERED": "yes"}, True, "held"),
        ({"NETWORK_TYPE": "5G", "NETWORK_METERED": "no"}, False, "moves"),
        ({"NETWORK_TYPE": "wifi", "BATTERY": "10", "CHARGING": "no"}, False, "held"),
        ({"NETWORK_TYPE": "wifi", "BATTERY": "10", "CHARGING": "yes"}, False, "moves"),
    ],
)
def test_metered_links_and_low_batteries_hold_bulk(environment, metered, bulk) -> None:
    calm = {"THERMAL": "normal", "MEMORY_GB": "4"}
    conditions = seen(calm | environment)
    assert conditions.metered is metered
    assert decide(conditions).bulk == bulk
    willing = replace(conditions, limits=OwnerLimits(bulk_on_metered=True))
    assert decide(willing).bulk == ("held" if "BATTERY" in environment and bulk == "held" else "moves")


def test_the_most_pressing_of_several_reasons_names_the_mode() -> None:
    pressed = replace(WELL, battery_percent=5.0, charging=False, discharging=True, memory_mb=256, temp_c=90.0)
    assert decide(pressed).mode == "thermal_throttle"
    assert decide(replace(pressed, temp_c=40.0)).mode == "battery_save"
    assert decide(replace(pressed, temp_c=40.0, charging=True, discharging=False)).mode == "low_ram"


@given(st.floats(0.2, 3_600), st.floats(0, 10))
def test_heartbeats_come_never_more_often_than_asked_for_and_never_too_rarely_for_presence(asked_s, trip) -> None:
    found = decide(replace(WELL, heartbeat_s=asked_s, round_trip_s=trip))
    assert asked_s <= found.heartbeat_s < max(3 * asked_s, asked_s + 1e-9)


AWAY = Situation(
    quality="offline",
    offline_s=1_000,
    neighbours=0,
    folder=False,
    battery_percent=None,
    charging=None,
    lane="normal",
    waiting_bytes=1_000,
    min_battery_percent=20.0,
)
LOW = {"battery_percent": 10.0, "charging": False}


@pytest.mark.parametrize(
    ("changes", "transport", "why"),
    [
        ({"quality": "excellent", "neighbours": 3, "folder": True}, "direct", "the link is excellent"),
        ({"quality": "poor", "neighbours": 3}, "direct", "the link is poor"),
        (
            {"quality": "poor", "neighbours": 3, "lane": "bulk", "waiting_bytes": DETOUR_BYTES},
            "neighbour",
            "of bulk wait",
        ),
        ({"quality": "poor", "lane": "bulk", "waiting_bytes": DETOUR_BYTES}, "direct", "the link is poor"),
        ({"waiting_bytes": 0, "neighbours": 1, "folder": True}, "wait", "nothing waits"),
        ({"neighbours": 2, "offline_s": PATIENCE_S["normal"] - 1}, "wait", "normal letters wait 30 s"),
        ({"neighbours": 2, "offline_s": PATIENCE_S["control"], "lane": "control"}, "neighbour", "2 in reach"),
        ({"neighbours": 2, "offline_s": PATIENCE_S["bulk"] - 1, "lane": "bulk"}, "wait", "bulk letters wait 300 s"),
        ({"neighbours": 2}, "neighbour", "2 in reach"),
        ({}, "wait", "no neighbour is in reach and there is no folder"),
        ({"folder": True}, "folder", "no neighbour in reach"),
        ({"folder": True, "neighbours": 1}, "neighbour", "1 in reach"),
        ({"folder": True, "neighbours": 1, "waiting_bytes": FOLDER_BYTES}, "folder", "much for a neighbour"),
        ({"folder": True, "neighbours": 1, **LOW}, "folder", "battery at 10 %"),
        ({"neighbours": 1, **LOW}, "wait", "only control letters use the radio"),
        ({"neighbours": 1, "lane": "control", **LOW}, "neighbour", "1 in reach"),
        ({"neighbours": 1, **LOW, "charging": True}, "neighbour", "1 in reach"),
    ],
)
def test_the_way_that_letters_take(changes, transport, why) -> None:
    found = choose_transport(replace(AWAY, **changes))
    assert found.transport == transport
    assert why in found.reason


@given(
    st.sampled_from(ORDER),
    st.floats(0, 1e6),
    st.integers(0, 5),
    st.booleans(),
    st.none() | st.floats(0, 100),
    st.none() | st.booleans(),
    st.sampled_from(LANES),
    st.integers(0, 1 << 30),
)
def test_a_way_is_only_chosen_where_there_is_one(
    quality, offline_s, neighbours, folder, battery, charging, lane, waiting
) -> None:
    found = choose_transport(Situation(quality, offline_s, neighbours, folder, battery, charging, lane, waiting, 20.0))
    assert found.transport != "neighbour" or neighbours
    assert found.transport != "folder" or folder
    assert (found.transport == "direct") <= (quality != "offline")
    assert found.reason
