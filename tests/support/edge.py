"""A real `causeway-edge` process and what a test asks of it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from schemas.ids import Address
from services.kit import rpc
from services.kit.api.registry import DeviceRequest, TokenRequest
from services.kit.bus import on_bus
from tests.support.platform import LivePlatform

FLEET = "home"


def ask(live: LivePlatform, service: str, verb: str, request: Any = None) -> Any:
    """One request as the operator."""

    async def call() -> Any:
        async with on_bus(live.state, live.settings, "operator") as bus:
            return await rpc.call(bus, service, verb, request)

    return asyncio.run(call())


def show(live: LivePlatform, address: Address) -> dict[str, Any]:
    """What the registry says of a device."""
    return ask(live, "registry", "show", DeviceRequest(fleet=address.fleet, device=address.device))


@dataclass
class EdgeProcess:
    """One device's folder, and its agent when it runs."""

    folder: Path
    address: Address
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    prefix: list[str] = field(default_factory=list)
    """What runs the agent elsewhere, as in a network namespace."""

    @classmethod
    def make(cls, folder: Path, name: str, extra: str = "") -> EdgeProcess:
        folder.mkdir(parents=True)
        (folder / "edge.toml").write_text(f'state = "state"\nheartbeat_s = 0.5\n{extra}')
        return cls(folder, Address(FLEET, name))

    @property
    def token(self) -> Path:
        return self.folder / f"{self.address.device}.token"

    def fetch_token(self, live: LivePlatform, **changes: Any) -> dict[str, Any]:
        token = ask(
            live, "registry", "token", TokenRequest(fleet=self.address.fleet, device=self.address.device, **changes)
        )
        self.token.write_text(json.dumps(token))
        return token

    def call(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """A short command."""
        command = [
            *self.prefix,
            sys.executable,
            "-m",
            "edge_runtime",
            *arguments,
            "--config",
            str(self.folder / "edge.toml"),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=os.environ | self.environment, check=False
        )

    def enrol(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.call("enrol", str(self.token), *more)

    def admit(self, live: LivePlatform) -> Self:
        """Enrol with a token of this platform."""
        self.fetch_token(live)
        done = self.enrol()
        assert done.returncode == 0, done.stderr
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.stop()

    def start(self) -> None:
        command = [
            *self.prefix,
            sys.executable,
            "-m",
            "edge_runtime",
            "run",
            "--config",
            str(self.folder / "edge.toml"),
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | self.environment)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(20)
        self.process = None
        return code

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)
        self.process = None

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def status(self) -> dict[str, Any]:
        path = self.folder / "state" / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def rows(self, query: str, database: str = "outbox.db") -> list[tuple[Any, ...]]:
        with sqlite3.connect(f"file:{self.folder / 'state' / database}?mode=ro", uri=True) as connection:
            found = connection.execute(query).fetchall()
        connection.close()
        return found
