"""What `causeway-edge` says to wrong options and settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.cli import main


@pytest.mark.parametrize("value", ["-3", "x", "nan", "inf", "1e9"])
@pytest.mark.parametrize("command", [["status", "--wait"], ["enrol", "cam.token", "--timeout"]])
def test_seconds_that_make_no_sense_are_refused_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], command: list[str], value: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, value])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"argument {command[-1]}: expected seconds from 0 to 86400, as 10, got {value!r}" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('log_level = "LOUD"', "log_level: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("heartbeat = 3", "heartbeat: there is no such name (did you mean heartbeat_s?)"),
        (
            "[limits]\nmin_batery_percent = 3",
            "limits.min_batery_percent: there is no such name (did you mean min_battery",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["status", "--config", str(file)])
    assert ended.value.code == 2
    assert f"causeway-edge: read settings {file}: {told}" in capsys.readouterr().err


def test_a_folder_for_a_settings_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--config", str(tmp_path)])
    assert f"name the file in it, as {tmp_path / 'edge.toml'}" in capsys.readouterr().err
