"""Laws of placement: who may have a task, who gets it, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.api.registry import DeviceView
from services.kit.api.scheduler import Requires
from services.scheduler.placement import MAX_OTHERS, Demand, Placer
from services.scheduler.scoring import (
    MAX_LEASES_PER_DEVICE,
    MAX_SPEED,
    MIN_SPEED,
    Node,
    Track,
    ineligible,
    relative_speed,
    worth,
)

SESSION = "01JD0000000000000000000000"


def node(device: str = "cam-1", *, running: int = 0, track: Track | None = None, **changes: Any) -> Node:
    beat = {
        "session": SESSION,
        "uptime_s": 10.0,
        "load": changes.pop("load", 0.0),
        "cpu_ratio": changes.pop("cpu_ratio", None),
        "ram_free_mb": changes.pop("ram_free_mb", 2_000),
        "battery_percent": changes.pop("battery_percent", None),
        "charging": changes.pop("charging", None),
        "discharging": changes.pop("discharging", None),
        "temp_c": changes.pop("temp_c", None),
    }
    view = {
        "fleet": changes.pop("fleet", "harbour"),
        "device": device,
        "standing": changes.pop("standing", "enrolled"),
        "trust_level": "enrolled",
        "online": changes.pop("online", True),
        "enrolled_at": "2026-01-01T00:00:00Z",
        "jwt_expires": 0,
        "heartbeat": changes.pop("heartbeat", beat),
        "capabilities": {
            "os": "Linux",
            "arch": "aarch64",
            "python": "3.11",
            "agent": "0.1.0",
            "cpu_count": changes.pop("cores", 4),
            "ram_mb": changes.pop("ram_mb", 4_000),
            "disk_mb": 10_000,
            "battery": changes.pop("has_battery", False),
            "runners": changes.pop("runners", ["profile@1"]),
            "datasets": changes.pop("datasets", {}),
        },
    }
    assert not changes
    return Node(DeviceView.model_validate(view), track or Track(), running)


def demand(**changes: Any) -> Demand:
    values: dict[str, Any] = {
        "fleet": "harbour",
        "runner": "profile@1",
        "requires": Requires(),
        "ram_mb": 256,
        "group": "group",
    }
    return Demand(**(values | changes))


def may(candidate: Node, **requires: Any) -> bool:
    return ineligible(candidate, "profile@1", Requires(**requires), 256) is None


percent = st.one_of(st.none(), st.floats(0, 100))
flag = st.sampled_from([None, False, True])
temperature = st.one_of(st.none(), st.floats(-40, 120))
nodes = st.builds(
    lambda index, **changes: node(f"device-{index}", **changes),
    st.integers(0, 10_000),
    cores=st.integers(1, 64),
    load=st.one_of(st.none(), st.floats(0, 100)),
    cpu_ratio=st.one_of(st.none(), st.floats(0, 1)),
    ram_free_mb=st.one_of(st.none(), st.integers(0, 4_000)),
    battery_percent=percent,
    charging=flag,
    discharging=flag,
    temp_c=temperature,
    has_battery=st.booleans(),
    online=st.booleans(),
    standing=st.sampled_from(["enrolled", "enrolled", "revoked", "quarantined"]),
    runners=st.sampled_from([["profile@1"], ["evaluate@1"], []]),
    running=st.integers(0, MAX_LEASES_PER_DEVICE + 1),
)
fleets = st.lists(nodes, max_size=24, unique_by=lambda n: n.device)


@given(fleets, st.integers(1, 40))
def test_no_device_gets_a_task_that_it_may_not_have(fleet: list[Node], tasks: int) -> None:
    placer = Placer(fleet)
    allowed = {n.device for n in fleet if may(n)}
    for _ in range(tasks):
        placement = placer.place(demand())
        assert placement.device is None or placement.device in allowed
        assert len(placement.reasons) <= MAX_OTHERS + 1
        assert len({reason.device for reason in placement.reasons}) == len(placement.reasons)
        if placement.device is not None:
            assert placement.reasons[0].device == placement.device
            assert placement.reasons[0].score is not None
        for reason in placement.reasons:
            assert reason.why
            if reason.device not in allowed:
                assert reason.score is None


@given(fleets)
def test_a_device_that_may_have_the_task_is_found(fleet: list[Node]) -> None:
    placement = Placer(fleet).place(demand())
    assert (placement.device is None) == (not any(may(n) for n in fleet))


@given(fleets, st.integers(1, 60))
def test_no_device_holds_more_than_it_may(fleet: list[Node], tasks: int) -> None:
    placer = Placer(fleet)
    got = Counter(placer.place(demand()).device for _ in range(tasks))
    for candidate in fleet:
        assert got[candidate.device] == 0 or got[candidate.device] + candidate.running <= MAX_LEASES_PER_DEVICE


@given(charging=flag, discharging=flag, temp=temperature, has_battery=st.booleans())
def test_an_empty_battery_passes_only_while_it_truly_charges(
    charging: bool | None, discharging: bool | None, temp: float | None, has_battery: bool
) -> None:
    candidate = node(
        battery_percent=0.0, charging=charging, discharging=discharging, temp_c=temp, has_battery=has_battery
    )
    truly = charging is True and discharging is not True
    assert truly or not may(candidate)


@given(st.floats(0, 100), st.floats(0, 100))
def test_the_battery_limit_is_inclusive(level: float, limit: float) -> None:
    assert may(node(battery_percent=level), min_battery_percent=limit) == (level >= limit)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"battery_percent": 10.0}, "battery 10 % is below 30 %, not charging"),
        ({"battery_percent": 0.0, "charging": True, "discharging": True}, "battery 0 % is below"),
        ({"has_battery": True}, "level is not read"),
        ({"temp_c": 56.0}, "56 C is above 55 C"),
        ({"ram_free_mb": 100}, "memory 100 MB free, below 256 MB"),
        ({"ram_free_mb": 0}, "memory 0 MB free"),
        ({"ram_free_mb": None, "ram_mb": 128}, "memory 128 MB in all, free is not read"),
        ({"online": False}, "offline"),
        ({"standing": "revoked"}, "standing is revoked"),
        ({"runners": []}, "runner profile@1 is not installed"),
        ({"heartbeat": None}, "no heartbeat yet"),
        ({"running": MAX_LEASES_PER_DEVICE}, "holds 32 tasks"),
    ],
)
def test_a_refusal_says_why(changes: dict[str, Any], why: str) -> None:
    placement = Placer([node(**changes)]).place(demand())
    assert placement.device is None
    assert why in placement.reasons[0].why


@pytest.mark.parametrize(
    "changes",
    [
        {"battery_percent": None},
        {"battery_percent": 5.0, "charging": True},
        {"has_battery": True, "charging": True},
        {"temp_c": None},
        {"temp_c": 0.0},
        {"ram_free_mb": None},
        {"load": None},
    ],
)
def test_an_absent_reading_is_not_a_bad_one(changes: dict[str, Any]) -> None:
    assert Placer([node(**changes)]).place(demand()).device == "cam-1"


def test_chosen_devices_and_datasets_are_required() -> None:
    fleet = [node("cam-1"), node("cam-2", datasets={"digits": 10})]
    assert Placer(fleet).place(demand(requires=Requires(dataset="digits"))).device == "cam-2"
    assert Placer(fleet).place(demand(requires=Requires(devices=["cam-1"]))).device == "cam-1"
    missing = Placer(fleet).place(demand(requires=Requires(devices=["cam-9"])))
    assert missing.device is None
    assert missing.reasons[0].device == "cam-9"
    assert missing.reasons[0].why == "not enrolled"


def test_another_fleet_gives_no_device() -> None:
    assert Placer([node(fleet="office")]).place(demand()).device is None


@given(nodes, st.integers(1, 32), st.floats(0, 64))
def test_more_cores_and_less_load_never_score_less(candidate: Node, more: int, less: float) -> None:
    beat = candidate.view.heartbeat
    assert beat is not None
    load = min(beat.load if beat.load is not None else 64.0, 64.0)
    before = candidate.view.model_copy(update={"heartbeat": beat.model_copy(update={"load": load})})
    better = before.model_copy(
        update={
            "capabilities": before.capabilities.model_copy(update={"cpu_count": before.capabilities.cpu_count + more}),
            "heartbeat": beat.model_copy(update={"load": max(0.0, load - less)}),
        }
    )
    requires = Requires()
    assert worth(Node(better), requires).base >= worth(Node(before), requires).base


@given(nodes)
def test_every_factor_is_above_zero_and_running_tasks_lower_the_score(candidate: Node) -> None:
    factors = worth(candidate, Requires())
    scores = [factors.score(running) for running in range(5)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 5
    assert scores[-1] > 0


def test_equal_devices_share_equally() -> None:
    placer = Placer([node(f"cam-{index}") for index in range(4)])
    got = Counter(placer.place(demand()).device for _ in range(12))
    assert set(got.values()) == {3}


def test_work_goes_in_proportion_to_the_score() -> None:
    placer = Placer([node("large", cores=8), node("small", cores=2)])
    got = Counter(placer.place(demand()).device for _ in range(10))
    assert got == {"large": 8, "small": 2}


def test_classes_of_requests_see_each_others_work() -> None:
    placer = Placer([node("cam-1", datasets={"d": 1}), node("cam-2")])
    pinned = demand(requires=Requires(dataset="d"))
    for _ in range(3):
        assert placer.place(pinned).device == "cam-1"
    assert placer.place(demand()).device == "cam-2"
    assert placer.place(demand()).device == "cam-2"


def test_at_most_so_many_of_a_group_per_device() -> None:
    held = {"group": Counter({"harbour/cam-1": 1})}
    placer = Placer([node("cam-1", cores=64), node("cam-2", cores=1)], held)
    limited = demand(max_per_device=2)
    assert [placer.place(limited).device for _ in range(4)] == ["cam-1", "cam-2", "cam-2", None]
    last = placer.place(limited)
    assert "at most 2 per device" in last.reasons[0].why
    assert placer.place(demand(max_per_device=2, group="other")).device == "cam-1"


def test_a_device_that_had_the_task_gets_it_again_only_if_nobody_else_may() -> None:
    fleet = [node("cam-1", cores=64), node("cam-2", cores=1)]
    assert Placer(fleet).place(demand(), avoid={"cam-1"}).device == "cam-2"
    again = Placer(fleet).place(demand(), avoid={"cam-1", "cam-2"})
    assert again.device == "cam-1"
    assert "again" in again.reasons[0].why


@given(st.sets(st.integers(0, 7)), st.integers(1, 20))
def test_avoiding_loses_no_candidate(avoided: set[int], tasks: int) -> None:
    placer = Placer([node(f"cam-{index}") for index in range(8)])
    placer.place(demand(), avoid={f"cam-{index}" for index in avoided})
    got = Counter(placer.place(demand()).device for _ in range(tasks))
    assert None not in got


def test_reasons_name_refused_devices_also_in_a_large_fleet() -> None:
    fleet = [node(f"cam-{index:03}") for index in range(100)]
    fleet += [node(f"low-{index}", battery_percent=1.0) for index in range(10)]
    reasons = Placer(fleet).place(demand()).reasons
    assert len(reasons) == MAX_OTHERS + 1
    assert sum(reason.score is None for reason in reasons) == 6


def test_speed_counts_and_a_boast_is_bounded() -> None:
    fast = node("fast", cores=1, track=Track(speed=4.0))
    slow = node("slow", cores=2, track=Track(speed=1.0))
    assert Placer([fast, slow]).place(demand()).device == "fast"
    assert relative_speed({"gflops": 20.0, "sha256_mb_s": 500.0}) == pytest.approx(1.0)
    assert relative_speed({"gflops": 1e12, "sha256_mb_s": 1e12}) == MAX_SPEED
    assert relative_speed({"gflops": 1e-6, "sha256_mb_s": 1e-6}) == MIN_SPEED
    for bad in ({}, {"gflops": 0.0, "sha256_mb_s": 1.0}, {"gflops": True, "sha256_mb_s": 1.0}, {"gflops": "9"}):
        assert relative_speed(bad) is None


def test_failures_lower_the_success_share_and_never_to_zero() -> None:
    shares = [Track(failed=failed).success_share for failed in range(60)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert shares[-1] > 0
    assert Track(succeeded=9, failed=1).success_share == pytest.approx(10 / 11)
