from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime.condition.probes import Overrides, Probes
from edge_runtime.condition.readings import DeviceReadings
from edge_runtime.condition.status import StatusFile
from edge_runtime.conduct.conduct import Conduct
from edge_runtime.explain import as_text, explanation
from edge_runtime.link.link import Measured
from edge_runtime.settings import CarrierSettings, EdgeSettings, OwnerLimits
from schemas.registry import Twin

CALM = Overrides(percent=70.0, charging=False, temp_c=40.0, memory_mb=4_096, network="wifi")


class Scene:
    def __init__(self, over: Overrides = CALM, twin: Twin | None = None) -> None:
        self.now, self.link, self.twin = 100.0, Measured(0.02, 0.0, 1e6), twin
        self.answered = True
        settings = EdgeSettings(limits=OwnerLimits(min_battery_percent=25))
        self.conduct = Conduct(
            settings,
            DeviceReadings(settings, Probes(over)),
            lambda: self.twin,
            lambda: self.link if self.answered else None,
            lambda: self.now,
        )


def test_decisions_are_kept_for_a_moment_and_made_anew_after_it() -> None:
    scene = Scene()
    assert scene.conduct.decisions().quality == "excellent"
    scene.link = Measured(3.0, 0.3)
    assert scene.conduct.decisions().quality == "excellent"
    scene.now += 3
    assert scene.conduct.decisions().quality == "poor"
    assert scene.conduct.grant().bulk == "yields"
    assert scene.conduct.grant().congestion == "bbr"
    assert scene.conduct.explanation()["decisions"]["congestion"]["value"] == "bbr"


def test_what_the_sensors_said_holds_while_a_probe_fails_and_without_any_nothing_bulky_moves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Probes) -> str:
        raise RuntimeError("probe")

    known, blank = Scene(), Scene()
    assert known.conduct.decisions().bulk == "moves"
    with monkeypatch.context() as patch:
        patch.setattr(Probes, "network", broken)
        for scene in (known, blank):
            scene.now += 3
            scene.conduct.decisions()
            scene.now += 3
        assert known.conduct.grant().bulk == "moves"
        assert blank.conduct.grant().bulk == "held"
        assert blank.conduct.explanation()["decisions"]["bulk"]["value"] == "held"
        assert blank.conduct.offline_s == 0
        assert blank.conduct.choice("control", 1, neighbours=1, folder=True).transport == "direct"
        known.answered = blank.answered = False
        for scene in (known, blank):
            scene.now += 3
            assert scene.conduct.decisions().quality == "offline"
            scene.now += 1_000
            assert scene.conduct.offline_s == 1_000
            assert scene.conduct.choice("control", 1, neighbours=1, folder=True).transport == "neighbour"
            scene.answered = True
            scene.now += 3
            assert scene.conduct.decisions().quality == "excellent"
        assert [record.getMessage() for record in caplog.records].count("conduct.not_decided") == 2
        with pytest.raises(RuntimeError, match="probe"):
            known.conduct.look()
    blank.now += 3
    assert blank.conduct.decisions().bulk == "moves"


def test_time_offline_counts_from_the_last_answer() -> None:
    scene = Scene()
    assert scene.conduct.offline_s == 0
    scene.answered = False
    scene.now += 10
    assert scene.conduct.look().quality == "offline"
    scene.now += 50
    assert scene.conduct.offline_s == 50
    assert scene.conduct.choice("normal", 10, neighbours=1, folder=False).transport == "neighbour"
    scene.answered = True
    scene.now += 3
    assert scene.conduct.offline_s == 0


def test_the_platform_tightens_and_the_explanation_says_whose_word_counts() -> None:
    scene = Scene(twin=Twin(heartbeat_s=60, min_battery_percent=80))
    found = scene.conduct.explanation()
    assert found["limits"]["min_battery_percent"] == {"owner": 25, "platform": 80, "counts": 80}
    assert found["limits"]["max_temp_c"]["platform"] is None
    assert found["decisions"]["mode"]["value"] == "battery_save"
    assert found["decisions"]["heartbeat_s"]["value"] == 120
    assert set(found["ways"]) == {"control", "normal", "bulk"}


def test_without_an_agent_it_is_computed_and_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAUSEWAY_PROFILE", "battery_save")
    found = explanation(EdgeSettings(state=tmp_path))
    assert found["source"] == "computed"
    assert found["decisions"]["mode"]["value"] == "battery_save"
    text = as_text(found)
    assert "no agent runs here" in text
    assert "battery at 15 %" in text
    assert "way of control wait" in text


def test_a_running_agent_has_the_word(tmp_path) -> None:
    scene = Scene(replace(CALM, metered=True))
    file = StatusFile(tmp_path / "status.json")
    file.write({"pid": os.getpid()}, {"loss_ratio": 0.25, "explanation": scene.conduct.explanation()})
    found = explanation(EdgeSettings(state=tmp_path))
    assert found["source"] == "agent"
    assert found["figures"] == {"loss_ratio": 0.25}
    text = as_text(found)
    assert "is metered" in text
    assert "loss_ratio         0.25" in text
    held = {"since": "2030-01-01T00:00:00Z", "message": "two letters have number 3"}
    file.write({"pid": os.getpid(), "suspended": held}, {"explanation": scene.conduct.explanation()})
    assert "two letters have number 3" in as_text(explanation(EdgeSettings(state=tmp_path)))
    file.write({"pid": 2**22 + 1}, {"explanation": scene.conduct.explanation()})
    assert explanation(EdgeSettings(state=tmp_path))["source"] == "computed"


@pytest.mark.parametrize("form", ["--json", None])
def test_the_command(tmp_path: Path, form: str | None) -> None:
    command = [sys.executable, "-m", "edge_runtime", "explain", *([form] if form else [])]
    environment = os.environ | {"NETWORK_TYPE": "lte", "BATTERY": "90"}
    (tmp_path / "edge.toml").write_text("")
    command += ["--config", str(tmp_path / "edge.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    if form:
        assert json.loads(done.stdout)["conditions"]["metered"] is True
    else:
        assert "bulk          held: the link is offline" in done.stdout
    assert done.stderr == ""
    wrong = environment | {"BATTERY": "x"}
    failed = subprocess.run(command, capture_output=True, text=True, timeout=60, env=wrong, check=False)
    assert failed.returncode == 2
    assert "BATTERY" in failed.stderr


def test_a_folder_behind_a_dead_mount_is_no_way_and_no_obstacle(tmp_path: Path) -> None:
    dead = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match="too long"):
        dead.is_dir()
    found = explanation(EdgeSettings(state=tmp_path, carriers=CarrierSettings(folder=dead)))
    assert found["ways"]["control"]["transport"] == "wait"
