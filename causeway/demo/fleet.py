"""The demo's devices: each a `causeway-edge` process with its own folder, credentials, data and readings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from causeway.demo.checks import DemoError
from causeway.platform.lifeline import die_with_parent
from edge_runtime.identity import require_enrolled
from schemas.registry import Token

STOP_TIMEOUT_S = 10.0
ENROL_TIMEOUT_S = 60.0
HEARTBEAT_S = 1.0


@dataclass
class DemoDevice:
    """One device of the demo.

    Attributes:
        readings: environment overrides of its probes.
        url: broker address if it is not the token's.
    """

    name: str
    folder: Path
    readings: dict[str, str]
    url: str | None = None
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def config(self) -> Path:
        """Its settings file."""
        return self.folder / "edge.toml"

    @property
    def state(self) -> Path:
        """Its state folder: outbox, inbox, identity, slots."""
        return self.folder / "state"

    def prepare(self, shard: Path, holdout: Path) -> None:
        """Write the settings and give it its own data."""
        self.folder.mkdir(parents=True)
        shutil.copy(shard, self.folder / "digits.npz")
        shutil.copy(holdout, self.folder / "holdout.npz")
        lines = ['state = "state"', f"heartbeat_s = {HEARTBEAT_S}"]
        if self.url is not None:
            lines.append(f'url = "{self.url}"')
        lines += [
            "[limits]",
            "min_battery_percent = 5",
            "[datasets]",
            'digits = "digits.npz"',
            'holdout = "holdout.npz"',
        ]
        self.config.write_text("\n".join(lines) + "\n")

    async def enrol(self, token: Token) -> None:
        """Run `causeway-edge enrol` to its end.

        Raises:
            DemoError: with what it printed, if it failed.
        """
        path = self.folder / f"{self.name}.token"
        path.touch(0o600)
        path.write_bytes(token.write())
        process = await self._spawn("enrol", str(path))
        try:
            async with asyncio.timeout(ENROL_TIMEOUT_S):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            code = await process.wait()
        if code != 0:
            raise DemoError(f"{self.name} did not enrol (exit {code}):\n{self.log()[-2000:]}")

    async def start(self) -> None:
        """Run the agent."""
        self.process = await self._spawn("run")

    async def stop(self) -> None:
        """End the agent, and kill it if it does not end."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    @property
    def alive(self) -> bool:
        """Whether the agent runs."""
        return self.process is not None and self.process.returncode is None

    async def run_host_program(self, letters: int) -> None:
        """Run a program of the owner beside the agent, which hands some letters to the outbox.

        Raises:
            DemoError: if it fails.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "causeway.demo.host", str(self.config), str(letters), stderr=asyncio.subprocess.PIPE
        )
        _, problems = await process.communicate()
        if process.returncode != 0:
            raise DemoError(f"the host program on {self.name} failed: {problems.decode()}")

    def jwt(self) -> str:
        """Its bus credential, as an attacker finds it who stole its storage."""
        credentials = require_enrolled(self.state / "identity.json").credentials
        assert credentials is not None
        return credentials.jwt

    def log(self) -> str:
        """What it wrote."""
        path = self.folder / "agent.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        with (self.folder / "agent.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "edge_runtime",
                *arguments,
                "--config",
                str(self.config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.readings,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )


def make_fleet(root: Path, count: int) -> list[DemoDevice]:
    """Devices `cam-1` to `cam-N`: different readings, the last one with a battery at 10 %."""
    readings = [
        {"BATTERY": "95", "CHARGING": "1", "THERMAL": "31"},
        {"BATTERY": "80", "CHARGING": "0", "THERMAL": "33"},
        {"BATTERY": "70", "CHARGING": "1", "THERMAL": "38"},
        {"BATTERY": "60", "CHARGING": "0", "THERMAL": "30"},
        {"BATTERY": "90", "CHARGING": "1", "THERMAL": "34"},
        {"BATTERY": "55", "CHARGING": "0", "THERMAL": "48"},
        {"BATTERY": "85", "CHARGING": "1", "THERMAL": "36"},
    ]
    weak = {"BATTERY": "10", "CHARGING": "0", "THERMAL": "32"}
    chosen = [readings[n % len(readings)] for n in range(count - 1)] + [weak]
    return [DemoDevice(f"cam-{n}", root / f"cam-{n}", own) for n, own in enumerate(chosen, start=1)]
