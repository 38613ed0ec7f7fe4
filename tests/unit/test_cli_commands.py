"""Every command of `causeway` has what scripts and people rely on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import onnx
import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from causeway.cli import common
from causeway.cli.device import _ago
from causeway.cli.main import app
from causeway.learning.export import to_onnx
from causeway.release.model import check_model
from edge_runtime.learning.catalogue import build_estimator
from services.kit.errors import SettingsError


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    found = getattr(command, "commands", None)
    if found is None:
        yield " ".join(path), command
        return
    for name, child in found.items():
        yield from leaves(child, (*path, name))


COMMANDS = dict(leaves(get_command(app)))


def test_every_command_that_the_tour_names_is_there() -> None:
    assert set(COMMANDS) >= {
        *("init", "up", "demo", "device enrol", "device list", "device show", "device revoke"),
        *("release stage", "release sign", "release publish", "release list"),
        *("rollout create", "rollout watch", "rollout abort", "rollout list"),
        *("task submit", "task list", "train start", "train watch", "train list", "data shard"),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_an_example_that_names_its_own_options(name: str) -> None:
    command = COMMANDS[name]
    options = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert "--json" in options
    (example,) = [line.strip() for line in command.help.splitlines() if line.strip().startswith("Example:")]
    assert example.startswith(f"Example: causeway {name}")
    used = {word for word in example.split() if word.startswith("-")}
    assert used <= options


def test_ids_stay_whole_at_80_columns_and_what_is_long_is_folded(monkeypatch) -> None:
    shown = Console(width=80, file=io.StringIO())
    monkeypatch.setattr(common, "console", shown)
    task = "01M80DSWGR4K72S2SPGGP1R35E"
    columns = ("task", "runner", "state", "device", "result")
    common.table(
        "1 task", columns, [(task, "evaluate@1", "done", "cam-1", "figures " * 40), (task, "x@1", "", None, "")]
    )
    lines = shown.file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[:4] for line in lines if task in line] == [
        [task, "evaluate@1", "done", "cam-1"],
        [task, "x@1", "-"],
    ]
    assert shown.file.getvalue().count("figures") == 40


def test_values_for_people_are_short() -> None:
    assert common.short({"accuracy": 0.5, "sha256": "ab" * 32, "ok": True, "why": "x"}) == (
        "accuracy 0.5, sha256 abababababab, ok true, why x"
    )
    assert (common.counted(1, "task"), common.counted(0, "task")) == ("1 task", "0 tasks")


@pytest.mark.parametrize(
    ("age", "said"), [(-1, "0 s ago"), (59, "59 s ago"), (60, "1 min ago"), (7300, "2 h ago"), (10**6, "11 d ago")]
)
def test_the_last_word_of_a_device_is_an_age(age: float, said: str) -> None:
    assert _ago(1e9 - age, 1e9) == said


def test_why_a_model_does_not_load_is_told_whole(tmp_path) -> None:
    model = onnx.load_from_string(to_onnx(build_estimator("classifier@1", {}, seed=0).get_weights()))
    model.ir_version = 99
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(SettingsError, match=r"Unsupported model IR version: 99.*older `ir_version`"):
        check_model(tmp_path / "m.onnx")


NUMBERS = [(name, p) for name, command in COMMANDS.items() for p in command.params if ".." in p.type.name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_number_has_a_range_of_ours(name: str) -> None:
    assert [p.name for p in COMMANDS[name].params if "int" in p.type.name or "float" in p.type.name] == []


@pytest.mark.parametrize(("name", "option"), NUMBERS, ids=[f"{name} {p.name}" for name, p in NUMBERS])
def test_a_number_that_is_none_or_out_of_range_is_refused_with_what_is_allowed(name: str, option: Any) -> None:
    low, high = option.type.name.split("..")
    wrong = ["x", "nan", "inf", "1e400", str(float(low) - 1), *([str(float(high) + 1)] if high else [])]
    for value in wrong:
        flag = [option.opts[0]] if option.opts[0].startswith("-") else ["--"]
        refused = CliRunner().invoke(app, [*name.split(), *flag, value])
        assert refused.exit_code == 2, value
        (said,) = refused.stderr.splitlines()
        assert said.startswith("causeway: ")
        assert f" number from {low} " in said
        assert said.endswith(f"got {value!r}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    undocumented = [p.name for p in COMMANDS[name].params if p.name != "help" and not getattr(p, "help", None)]
    assert undocumented == []
