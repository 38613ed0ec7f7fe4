"""Every command of `causeway` has what scripts and people rely on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from causeway.cli.main import app


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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    undocumented = [p.name for p in COMMANDS[name].params if p.name != "help" and not getattr(p, "help", None)]
    assert undocumented == []
