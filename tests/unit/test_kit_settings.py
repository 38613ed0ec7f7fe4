"""A misspelt setting of the platform would silently be none: it is refused, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from causeway.platform.supervisor import Supervisor
from services.courier.settings import CourierSettings
from services.kit.errors import SettingsError
from services.kit.folder import StateFolder
from services.kit.settings import load_settings, load_table

PLATFORM = 'platform = "01J00000000000000000000000"\n'


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path)
    folder.settings.write_text(PLATFORM)
    return folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flet = 'x'", "flet: there is no such name (did you mean fleet?); known are bus, courier, fleet"),
        ("[courrier]\nbatch = 3", "courrier: there is no such name (did you mean courier?"),
        ("[bus]\nnats_prot = 4222", "bus.nats_prot: there is no such name (did you mean nats_port?"),
        ("[store]\nbuckets = 'x'", "store.buckets: there is no such name (did you mean bucket?"),
        ("[http]\ngatway_port = 1", "http.gatway_port: there is no such name (did you mean gateway_port?"),
        ("[http]\nhealth_ports = {curier = 1}", "there is no service curier (did you mean courier?"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(state: StateFolder, text: str, said: str) -> None:
    state.settings.write_text(PLATFORM + text)
    with pytest.raises(SettingsError) as refused:
        load_settings(state)
    assert str(refused.value).startswith(f"read {state.settings}: ")
    assert said in str(refused.value)


def test_a_services_own_table_is_looked_at_before_anything_starts(state: StateFolder) -> None:
    state.settings.write_text(PLATFORM + "[courier]\nletters_per_minut = 100")
    said = r"\[courier\] letters_per_minut: there is no such name \(did you mean letters_per_minute\?\)"
    load_settings(state)
    with pytest.raises(SettingsError, match=said):
        load_table(state, "courier", CourierSettings)
    with pytest.raises(SettingsError, match=said):
        Supervisor(state)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CAUSEWAY_FLET", "CAUSEWAY_FLEET"),
        ("CAUSEWAY_HTTP_GATEWAY_PORT", "CAUSEWAY_HTTP__GATEWAY_PORT"),
        ("CAUSEWAY_COURIR_BATCH", None),
        ("CAUSEWAY_FLEET__NAME", "CAUSEWAY_FLEET"),
        ("CAUSEWAY_PLATFORM__X", "CAUSEWAY_PLATFORM"),
        ("CAUSEWAY_STATE__X", None),
    ],
)
def test_a_misspelt_variable_is_refused(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch, name: str, meant: str | None
) -> None:
    monkeypatch.setenv(name, "8080")
    with pytest.raises(SettingsError) as refused:
        load_settings(state)
    assert str(refused.value).startswith(f"read {name} of the environment: there is no such setting")
    assert meant is None or f"did you mean {meant}?" in str(refused.value)


def test_a_misspelt_variable_of_a_table_or_a_service_is_refused(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUSEWAY_COURIER_BATHC", "3")
    load_settings(state)
    with pytest.raises(SettingsError, match=r"CAUSEWAY_COURIER_BATHC .*did you mean CAUSEWAY_COURIER_BATCH\?"):
        load_table(state, "courier", CourierSettings)
    monkeypatch.delenv("CAUSEWAY_COURIER_BATHC")
    monkeypatch.setenv("CAUSEWAY_COURIER_BATCH__X", "3")
    with pytest.raises(SettingsError, match=r"CAUSEWAY_COURIER_BATCH__X .*did you mean CAUSEWAY_COURIER_BATCH\?"):
        load_table(state, "courier", CourierSettings)
    monkeypatch.setenv("CAUSEWAY_BUS__NATS_PROT", "3")
    with pytest.raises(SettingsError, match=r"and CAUSEWAY_BUS__NATS_PROT: bus.nats_prot: .*did you mean nats_port\?"):
        load_settings(state)


def test_a_variable_with_a_bad_value_is_named_beside_the_file(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUSEWAY_BUS__NATS_PORT", "0")
    with pytest.raises(SettingsError, match=r"settings.toml and CAUSEWAY_BUS__NATS_PORT: bus.nats_port: "):
        load_settings(state)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CAUSEWAY_BUS", '{"nats_prot": 3}', "settings.toml and CAUSEWAY_BUS: bus.nats_prot: there is no such name"),
        ("CAUSEWAY_BUS__HOST__X", "1", "settings.toml and CAUSEWAY_BUS__HOST__X: bus.host: "),
        ("CAUSEWAY_HTTP__HEALTH_PORTS__CURIER", "9000", "and CAUSEWAY_HTTP__HEALTH_PORTS__CURIER: http.health_ports: "),
        ("CAUSEWAY_BUS", "x", "read CAUSEWAY_BUS of the environment: Expecting value"),
        ("CAUSEWAY_HTTP__HEALTH_PORTS", "x", "read CAUSEWAY_HTTP__HEALTH_PORTS of the environment: Expecting value"),
    ],
)
def test_a_variable_of_a_whole_table_is_named(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings(state)
    assert said in str(refused.value)


def test_variables_of_others_are_left_alone(state: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CAUSEWAY_STATE": "x",
        "CAUSEWAY_PROFILE": "balanced",
        "CAUSEWAY_NATS_SERVICE_HOST": "10.0.0.1",
        "CAUSEWAY_NATS_PORT": "tcp://10.0.0.1:4222",
        "CAUSEWAY_NATS_PORT_4222_TCP_ADDR": "10.0.0.1",
        "CAUSEWAY_COURIER_PORT": "tcp://10.0.0.1:4222",
        "CAUSEWAY_BUS__NATS_PORT": "4333",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings(state).bus.nats_port == 4333
    load_table(state, "courier", CourierSettings)
