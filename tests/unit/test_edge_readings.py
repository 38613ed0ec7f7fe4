from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.condition import probes as module
from edge_runtime.condition.probes import Overrides, Power, Probes, read_overrides
from edge_runtime.condition.readings import DeviceReadings
from edge_runtime.conduct.policy import heartbeat_interval_s, may_work, tightened
from edge_runtime.errors import ConfigError
from edge_runtime.learning.datasets import Datasets, sample_count
from edge_runtime.settings import EdgeSettings, OwnerLimits, load_settings
from schemas.events import MAX_STATE_BYTES
from schemas.ids import Address
from schemas.letters import read_state, write_state
from schemas.registry import Heartbeat, Twin

SESSION = "01J00000000000000000000000"


def test_overrides_are_read_and_beat_the_profile() -> None:
    found = read_overrides({"CAUSEWAY_PROFILE": "battery_save", "BATTERY": "80%", "THERMAL": "hot", "MEMORY_GB": "0.5"})
    assert found == Overrides(percent=80, charging=False, temp_c=75, memory_mb=512, network=None)
    assert read_overrides({}) == Overrides()
    assert read_overrides({"NETWORK_TYPE": " LTE ", "CHARGING": "yes"}) == Overrides(network="lte", charging=True)


@pytest.mark.parametrize("profile", sorted(module.PROFILES))
def test_every_profile_shows(profile) -> None:
    probes = Probes(read_overrides({"CAUSEWAY_PROFILE": profile}))
    over = module.PROFILES[profile]
    assert over.percent is None or probes.power().percent == over.percent
    assert over.temp_c is None or probes.temp_c() == over.temp_c
    assert over.memory_mb is None or probes.memory().total_mb == over.memory_mb


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BATTERY", "101", "expected a number from 0 to 100"),
        ("BATTERY", "full", "expected a number from 0 to 100"),
        ("BATTERY", "-1", "expected a number from 0 to 100"),
        ("CHARGING", "maybe", "expected true or false"),
        ("NETWORK_METERED", "some", "expected true or false"),
        ("THERMAL", "nan", "expected a number from -40 to 150, or one of cool, normal, warm, hot, critical"),
        ("THERMAL", "boiling", "expected a number from -40 to 150, or one of cool, normal, warm, hot, critical"),
        ("MEMORY_GB", "0", "expected a number from 0.01 to 16384"),
        ("MEMORY_GB", "4GB", "expected a number from 0.01 to 16384"),
        (
            "NETWORK_TYPE",
            "pigeon",
            "expected one of 2g, 3g, 4g, 5g, cellular, ethernet, lte, unknown, vpn, wifi",
        ),
        (
            "CAUSEWAY_PROFILE",
            "fast",
            "expected one of balanced, battery_save, low_ram, performance, thermal_throttle",
        ),
    ],
)
def test_an_override_that_makes_no_sense_is_named_with_what_is_allowed(name, value, expected) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"read {name}={value!r}: {expected}")):
        read_overrides({name: value})


def test_a_battery_at_zero_is_not_a_missing_battery(tmp_path, monkeypatch) -> None:
    supply = tmp_path / "BAT0"
    supply.mkdir()
    monkeypatch.setattr(module, "_POWER", tmp_path)
    assert Probes(Overrides()).power() == Power()
    for name, text in {"type": "Battery", "capacity": "0", "status": "Discharging"}.items():
        (supply / name).write_text(text + "\n")
    assert Probes(Overrides()).power() == Power(0.0, charging=False, discharging=True)
    (supply / "status").write_text("Unknown\n")
    assert Probes(Overrides()).power() == Power(0.0, None, None)


def test_a_thermal_zone_without_a_sensor_is_no_reading(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_THERMAL", tmp_path)
    for number, text in enumerate(["0", "51234", "-274000", "garbage"]):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "temp").write_text(text)
    assert Probes(Overrides()).temp_c() == 51.234


@pytest.mark.parametrize(
    ("route", "kind"),
    [("wlan0", "wifi"), ("enp3s0", "ethernet"), ("wwan0", "cellular"), ("tun0", "vpn"), ("zz0", "unknown")],
)
def test_the_default_route_tells_the_kind_of_network(tmp_path, monkeypatch, route, kind) -> None:
    table = tmp_path / "route"
    table.write_text(f"Iface Destination\n{route} 00000000 0100A8C0 0003 0 0 100 00000000 0 0 0\n")
    monkeypatch.setattr(module, "_ROUTES", table)
    assert Probes(Overrides()).network() == kind


def test_capabilities_and_heartbeat_of_this_machine_fit_the_contract(tmp_path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((17, 64), np.float32), y=np.zeros(17))
    settings = EdgeSettings(
        state=tmp_path / "not" / "there", datasets={"digits": tmp_path / "d.npz"}, runners={"mine@2": "a:b"}
    )
    readings = DeviceReadings(settings, Probes(Overrides(percent=10, charging=False, network="5g")))
    found = readings.capabilities()
    assert found.datasets == {"digits": 17}
    assert {"profile@1", "evaluate@1", "mine@2"} == set(found.runners)
    assert found.estimators == ["classifier@1"]
    assert found.runtimes["numpy"] == np.__version__
    assert found.battery
    beat = readings.heartbeat()
    assert (beat.battery_percent, beat.charging, beat.discharging) == (10, False, True)
    assert beat.network.metered
    assert beat.cpu_ratio is None
    raw = write_state("heartbeat", beat, event_id=SESSION, address=Address("a", "b"), time=datetime.now(UTC))
    assert len(raw) < MAX_STATE_BYTES
    assert read_state(raw, "heartbeat").data == beat
    assert "cpu_ratio" not in json.loads(raw)["data"]


def test_a_data_set_counts_once_its_file_is_there(tmp_path) -> None:
    readings = DeviceReadings(EdgeSettings(state=tmp_path, datasets={"mine": tmp_path / "d.npz"}), Probes(Overrides()))
    assert readings.capabilities().datasets == {}
    (tmp_path / "d.npz").write_text("no archive")
    assert readings.unreadable() == [f"mine ({tmp_path / 'd.npz'})"]
    np.savez(tmp_path / "d.npz", x=np.zeros((17, 64), np.float32), y=np.zeros(17))
    assert readings.unreadable() == []
    assert readings.capabilities().datasets == {"mine": 17}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[datasetz]",
            "datasetz: there is no such name (did you mean datasets?); known are carriers, datasets, estimators",
        ),
        (
            "[limits]\nmax_cpu = 3",
            "limits.max_cpu: there is no such name (did you mean max_cpu_percent?); known are bulk_on_metered, max_act",
        ),
        ("stat = 1\n[limits]\nmax_cpu = 3", "tasks, training; known are carriers, datasets"),
        ("[neighbours]\npeers = ['here']", "'here' is not of the form host:port"),
    ],
)
def test_a_misspelt_setting_is_named_with_those_that_there_are(tmp_path, text, said) -> None:
    (tmp_path / "edge.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_settings(tmp_path / "edge.toml")


def test_settings_that_are_not_utf_8_are_named(tmp_path) -> None:
    (tmp_path / "edge.toml").write_bytes("# caf\u00e9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"edge\.toml: not TOML: .*save it as UTF-8"):
        load_settings(tmp_path / "edge.toml")


@pytest.mark.parametrize("shape", [(0, 4), (1,), (1797, 8, 8)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_samples_are_counted_without_numpy(tmp_path, shape, save) -> None:
    save(tmp_path / "d.npz", y=np.zeros(3), x=np.zeros(shape, np.float32))
    assert sample_count(tmp_path / "d.npz") == shape[0]


def test_what_is_no_dataset_is_left_out(tmp_path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    np.savez(tmp_path / "scalar.npz", x=np.float32(1))
    names = ("text", "other", "scalar", "missing")
    assert Datasets({name: tmp_path / f"{name}.npz" for name in names}).counts() == {}


def test_a_dataset_that_grows_is_counted_again(tmp_path) -> None:
    path = tmp_path / "d.npz"
    datasets = Datasets({"d": path})
    for count in (3, 30):
        buffer = io.BytesIO()
        np.savez(buffer, x=np.zeros((count, 2)))
        Path(path).write_bytes(buffer.getvalue())
        assert datasets.counts() == {"d": count}


def test_the_owners_interval_wins() -> None:
    assert heartbeat_interval_s(None, None) == 30
    assert heartbeat_interval_s(None, Twin(heartbeat_s=7)) == 7
    assert heartbeat_interval_s(2, Twin(heartbeat_s=7)) == 2


def test_the_twin_can_only_tighten() -> None:
    owner = OwnerLimits(max_cpu_percent=50, min_battery_percent=30, max_temp_c=60)
    loose = Twin(max_cpu_percent=100, min_battery_percent=0, throttle_temp_c=120)
    assert tightened(owner, loose) == owner
    tight = tightened(owner, Twin(max_cpu_percent=10, min_battery_percent=90, throttle_temp_c=40))
    assert (tight.max_cpu_percent, tight.min_battery_percent, tight.max_temp_c) == (10, 90, 40)


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        ({}, None),
        ({"battery_percent": 0}, "battery"),
        ({"battery_percent": 10, "charging": True, "discharging": True}, "battery"),
        ({"battery_percent": 10, "charging": True, "discharging": False}, None),
        ({"temp_c": 71}, "heat"),
    ],
)
def test_a_missing_reading_holds_nothing_back_and_zero_is_not_missing(reading, reason) -> None:
    heartbeat = Heartbeat(session=SESSION, uptime_s=1, **reading)
    assert may_work(OwnerLimits(), heartbeat, training=False).reason == reason


def test_the_owner_may_forbid_work() -> None:
    heartbeat = Heartbeat(session=SESSION, uptime_s=1)
    assert may_work(OwnerLimits(training=False), heartbeat, training=True).reason == "owner_limits"
    assert may_work(OwnerLimits(training=False), heartbeat, training=False).allowed
