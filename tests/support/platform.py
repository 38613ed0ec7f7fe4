"""A real bus, and services as real processes, for tests. Every wait has a limit and says what it waited for."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from causeway.platform.bus_log import bus_log
from causeway.platform.init import InitOptions, init_platform
from causeway.platform.nats_server import find_nats_server
from services.kit.folder import StateFolder
from services.kit.settings import Settings

T = TypeVar("T")
POLL_S = 0.02


def eventually(probe: Callable[[], T], what: str, timeout_s: float = 20.0) -> T:
    """Repeat `probe` until it returns something true."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s for {what}; last seen: {value!r}")
        time.sleep(POLL_S)


async def until(probe: Callable[[], T | Awaitable[T]], what: str, timeout_s: float = 30.0) -> T:
    """`eventually` in an event loop; the probe may be a coroutine's."""
    value = None
    try:
        async with asyncio.timeout(timeout_s) as limit:
            while True:
                value = probe()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"waited {timeout_s} s for {what}; last seen: {value!r}") from None


def accepts(host: str, port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


@contextmanager
def serving(root: Path, *services: str) -> Iterator[LivePlatform]:
    """A platform with these services for many tests, of which none may break it for the next."""
    live = LivePlatform.start(root)
    try:
        live.start_services(*services)
        yield live
        assert all(process.poll() is None for process in live.processes.values())
    finally:
        live.stop()


@dataclass
class LivePlatform:
    """A state folder with its nats-server running, and whichever services a test starts."""

    state: StateFolder
    settings: Settings
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def start(cls, root: Path, options: InitOptions | None = None) -> LivePlatform:
        """Initialise and start the bus."""
        state = StateFolder(root)
        settings = init_platform(state, options or InitOptions(free_ports=True))
        platform = cls(state, settings)
        platform.start_bus()
        return platform

    def start_bus(self) -> None:
        """Start nats-server and wait for both listeners."""
        self._spawn("nats-server", [find_nats_server(), "-c", str(self.state.nats_conf)])
        bus = self.settings.bus
        eventually(
            lambda: accepts(bus.host, bus.nats_port) and accepts(bus.host, bus.mqtt_port), "nats-server to listen"
        )

    def start_service(self, name: str) -> None:
        """Start `python -m services.NAME` and wait until it is ready."""
        self._spawn(name, [sys.executable, "-m", f"services.{name}", "--state", str(self.state.root)])
        port = self.settings.http.health_ports[name]
        eventually(lambda: self._ready(name, port), f"{name} to be ready")

    def start_services(self, *names: str) -> None:
        """One after the other."""
        for name in names:
            self.start_service(name)

    def kill(self, name: str) -> None:
        """`kill -9` a process of this platform."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def stop(self) -> None:
        """End every process, the bus last."""
        for name in [*(n for n in reversed(self.processes) if n != "nats-server"), "nats-server"]:
            process = self.processes.pop(name, None)
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def log(self, name: str) -> str:
        """What a process wrote."""
        path = self.state.logs / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def metrics(self, name: str) -> str:
        """The metrics page of a service."""
        return self.page(name, "/metrics")

    def page(self, name: str, path: str) -> str:
        """A health page of a service."""
        url = f"http://127.0.0.1:{self.settings.http.health_ports[name]}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()

    def _ready(self, name: str, port: int) -> bool:
        process = self.processes[name]
        if process.poll() is not None:
            raise AssertionError(f"{name} ended with {process.returncode}:\n{self.log(name)[-4000:]}")
        try:
            return json.loads(self.page(name, "/readyz"))["ready"]
        except (urllib.error.URLError, OSError):
            return False

    def _spawn(self, name: str, command: list[str]) -> None:
        with bus_log(self.state) if name == "nats-server" else (self.state.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"PYTHONUNBUFFERED": "1"}
            )
