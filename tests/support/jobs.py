"""Jobs for a worker's child process in tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edge_runtime.errors import InstallError


def echo(params: dict[str, Any]) -> dict[str, Any]:
    return {"pid": os.getpid(), **params}


def noisy(params: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.write("this is not the protocol\n")
    os.write(1, b'{"id": 1, "ok": {"forged": true}}\n')
    subprocess.run([sys.executable, "-c", "print('nor is this')"], check=True)
    return {"stdin": sys.stdin.read()}


def refuse(params: dict[str, Any]) -> dict[str, Any]:
    raise InstallError("install digits: it does not fit", reason="too_big")


def bug(params: dict[str, Any]) -> dict[str, Any]:
    return {"never": 1 // params["zero"]}


def hang(params: dict[str, Any]) -> dict[str, Any]:
    Path(params["started"]).write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def die(params: dict[str, Any]) -> dict[str, Any]:
    os._exit(9)


def huge(params: dict[str, Any]) -> dict[str, Any]:
    return {"text": "x" * (9 << 20)}


TABLE = {name: f"tests.support.jobs:{name}" for name in ("echo", "noisy", "refuse", "bug", "hang", "die", "huge")}


def target(params: dict[str, Any]) -> dict[str, Any]:
    """Stands in for `trust.target`: what the test laid into the trust folder."""
    answer: dict[str, Any] = json.loads((Path(params["folder"]) / "target.json").read_text())
    return answer
