"""`causeway up`: nats-server and every service as supervised processes; a dead one is started again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from causeway.platform.bus_log import bus_log
from causeway.platform.lifeline import die_with_parent
from causeway.platform.nats_server import collector, find_nats_server
from services.courier.settings import CourierSettings
from services.kit.errors import PlatformError, RefusedError, SettingsError
from services.kit.folder import SERVICES, StateFolder
from services.kit.settings import Settings, load_settings, load_table
from services.registry.settings import RegistrySettings

log = structlog.get_logger()

BUS = "nats-server"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05
MIN_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
STEADY_S = 30.0
"""A process that ran this long is started again at once."""


@dataclass
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    """Beside what this process has, which wins."""
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    started_at: float = 0.0
    backoff_s: float = MIN_BACKOFF_S
    watcher: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        """Whether it lives now."""
        return self.process is not None and self.process.returncode is None


class Supervisor:
    """Starts a platform, keeps it up and ends it whole.

    Raises:
        SettingsError: if the folder holds no platform, a setting does not fit, or nats-server is missing.
        RefusedError: if another `causeway up` holds the folder.
    """

    def __init__(self, state: StateFolder, services: tuple[str, ...] = SERVICES) -> None:
        self.state = state
        self.settings: Settings = load_settings(state)
        # Each service reads its own; what is wrong in one is to be said here, not in its log.
        load_table(state, "registry", RegistrySettings)
        load_table(state, "courier", CourierSettings)
        command = [find_nats_server(), "-c", str(state.nats_conf)]
        self._bus = Child(BUS, command, collector(self.settings.bus))
        self._services = [
            Child(name, [sys.executable, "-m", f"services.{name}", "--state", str(state.root)]) for name in services
        ]
        self._stopping = False

    @property
    def children(self) -> list[Child]:
        """Every process, the bus first."""
        return [self._bus, *self._services]

    async def start(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Start everything and return once all of it is ready."""
        self._check_ports()
        progress("starting nats-server")
        await self._launch(self._bus)
        await self._until(self._bus_listens, "nats-server to listen", [self._bus])
        progress(f"starting {len(self._services)} services")
        for child in self._services:
            await self._launch(child)
        for child in self._services:
            await self._until(lambda c=child: self._ready(c), f"{child.name} to be ready", [child])  # type: ignore[misc]
            progress(f"{child.name} is ready")
        self._write_pids()

    async def stop(self) -> None:
        """End every process, services before the bus; kill what does not end in time."""
        self._stopping = True
        for child in self.children:
            if child.watcher is not None:
                child.watcher.cancel()
        await asyncio.gather(*(self._end(child) for child in self._services))
        await self._end(self._bus)
        (self.state.run / "pids.json").unlink(missing_ok=True)

    async def _launch(self, child: Child) -> None:
        self.state.logs.mkdir(parents=True, exist_ok=True)
        output = self.state.logs / f"{child.name}.out"
        with bus_log(self.state) if child is self._bus else output.open("ab") as out:
            child.process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=child.environment | os.environ,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        child.starts += 1
        child.started_at = time.monotonic()
        child.watcher = asyncio.create_task(self._watch(child))

    async def _watch(self, child: Child) -> None:
        """Wait for the end of a process and start it again, slower each time that it ends early."""
        assert child.process is not None
        code = await child.process.wait()
        if self._stopping:
            return
        steady = time.monotonic() - child.started_at > STEADY_S
        child.backoff_s = MIN_BACKOFF_S if steady else min(MAX_BACKOFF_S, child.backoff_s * 2)
        log.warning("process.restarted", process=child.name, exit_code=code, after_s=round(child.backoff_s, 1))
        await asyncio.sleep(child.backoff_s)
        await self._launch(child)
        self._write_pids()

    async def _end(self, child: Child) -> None:
        process = child.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            log.warning("process.killed", process=child.name, after_s=STOP_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _until(self, probe: Callable[[], bool], what: str, children: list[Child]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not await asyncio.to_thread(probe):
            for child in children:
                if child.starts > 3 and not child.running:
                    raise PlatformError(f"start {child.name}: it ended {child.starts} times\n{self._tail(child)}")
            if time.monotonic() > deadline:
                raise PlatformError(f"waited {READY_TIMEOUT_S:.0f} s for {what}; its log:\n{self._tail(children[0])}")
            await asyncio.sleep(POLL_S)

    def _check_ports(self) -> None:
        bus, http = self.settings.bus, self.settings.http
        wanted = [(bus.host, bus.nats_port, "bus.nats_port"), (bus.host, bus.mqtt_port, "bus.mqtt_port")]
        wanted.append((http.host, http.gateway_port, "http.gateway_port"))
        wanted += [(http.host, port, f"http.health_ports.{name}") for name, port in http.health_ports.items() if port]
        for host, port, setting in wanted:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise SettingsError(
                        f"start the platform: port {port} on {host} is in use ({error.strerror}); end what listens "
                        f"there (`ss -ltnp 'sport = :{port}'`) or change {setting} in {self.state.settings}"
                    ) from error

    def _bus_listens(self) -> bool:
        bus = self.settings.bus
        return all(_accepts(bus.host, port) for port in (bus.nats_port, bus.mqtt_port))

    def _ready(self, child: Child) -> bool:
        return ready(self.settings, child.name)

    def _tail(self, child: Child) -> str:
        lines = []
        for path in (self.state.logs / f"{child.name}.out", self.state.logs / f"{child.name}.log"):
            if path.exists():
                lines += path.read_text(errors="replace").splitlines()[-8:]
        return "\n".join(lines)

    def _write_pids(self) -> None:
        pids = {child.name: child.process.pid for child in self.children if child.process and child.running}
        pids["causeway"] = os.getpid()
        (self.state.run / "pids.json").write_text(json.dumps(pids))


def ready(settings: Settings, service: str, timeout_s: float = 1.0) -> bool:
    """Whether a service says on its health page that it is ready."""
    port = settings.http.health_ports[service]
    request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    try:
        with socket.create_connection((settings.http.host, port), timeout=timeout_s) as link:
            link.sendall(request)
            return link.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


@contextmanager
def exclusive(state: StateFolder) -> Iterator[None]:
    """Hold a state folder; the kernel lets go of it when the process ends, however it ends.

    Raises:
        RefusedError: if another process holds it.
    """
    state.require()
    state.run.mkdir(parents=True, exist_ok=True)
    path = state.run / "lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise RefusedError(
                f"start the platform in {state.root}: it is up already (process {lock.read().strip() or 'unknown'}); "
                "end that one with Ctrl-C, or use another folder with --state"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _accepts(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0
