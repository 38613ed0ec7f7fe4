"""`causeway` as an operator types it, in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from causeway.cli.main import app
from tests.support.platform import LivePlatform


def cli(live: LivePlatform, *arguments: str, code: int = 0) -> str:
    """What a command says on both streams; it must end with `code`."""
    done = _run(live, *arguments)
    assert done.exit_code == code, (done.exit_code, done.output, done.exception)
    return str(done.output)


def cli_json(live: LivePlatform, *arguments: str, code: int = 0) -> Any:
    """What it prints with `--json`."""
    done = _run(live, *arguments, "--json")
    assert done.exit_code == code, (done.exit_code, done.output, done.exception)
    return json.loads(done.stdout)


def _run(live: LivePlatform, *arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--state", str(live.state.root)])
