"""The whole platform and all sites as real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from causeway.platform.bus_log import bus_log
from causeway.platform.init import InitOptions, init_platform
from causeway.platform.nats_server import find_nats_server
from causeway.platform.supervisor import ready
from services.kit import rpc
from services.kit.api.registry import TokenRequest
from services.kit.bus import connect
from services.kit.folder import StateFolder
from services.kit.settings import Settings
from tests.chaos import office
from tests.chaos.network import Site
from tests.chaos.office import OfficeConfig
from tests.chaos.pace import Go
from tests.chaos.plan import Fault
from tests.chaos.processes import ChaosError, Child, Crew, until
from tests.chaos.site import Device, SiteConfig
from tests.support.platform import accepts

FLEET = "chaos"
BUS = "nats-server"
COURIERS = ("courier-a", "courier-b")
OFFICE = "office"
START_S = 60.0
ENROL_S = 30.0
"""Limit for the platform to come up, and per device to enrol."""
OVERFLOWING = 0
"""Number of the device whose outbox is small and whose program talks most, so that its policy must drop letters."""
OVERFLOWING_LETTERS = 100
OVERFLOWING_SHARE = 3
ACTIVE_S = 5.0
MAX_ENDS = 3
"""Processes that may end by themselves while everything starts."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much, by how many."""

    devices: int
    sites: int
    up: int
    down: int
    duration_s: float

    @property
    def names(self) -> list[str]:
        """Every device."""
        return [f"d{number:02d}" for number in range(self.devices)]

    def shares(self) -> list[int]:
        """Letters up of each device; all of them together `up`."""
        weights = [OVERFLOWING_SHARE if number == OVERFLOWING else 1 for number in range(self.devices)]
        shares = [self.up * weight // sum(weights) for weight in weights]
        shares[-1] += self.up - sum(shares)
        return shares

    def site_of(self, number: int) -> int:
        """Where a device stands."""
        return number % self.sites


class Stage:
    """One run's processes and files."""

    def __init__(self, root: Path, load: Load, host: str, sites: list[Site]) -> None:
        self.root = root
        self.load = load
        self.sites = sites
        self.crew = Crew()
        self.go = root / "go.json"
        self.state = StateFolder(root / "platform")
        self.settings: Settings = init_platform(self.state, InitOptions(host=host, fleet=FLEET, free_ports=True))
        self._health = {"courier-a": self.settings.http.health_ports["courier"], "courier-b": _free_port()}

    async def start(self) -> None:
        """The platform first, then every device enrolled and its agent up."""
        bus = self.settings.bus
        await self.crew.hire(
            Child(BUS, [find_nats_server(), "-c", str(self.state.nats_conf)], lambda: bus_log(self.state))
        )
        await self._until(lambda: accepts(bus.host, bus.nats_port) and accepts(bus.host, bus.mqtt_port), "nats-server")
        for name in ("registry", "depot"):
            await self._hire_service(name, f"services.{name}")
        room = str(2 * -(-self.load.down // self.load.devices) + 100)
        for name in COURIERS:
            ports = json.dumps({"courier": self._health[name]})
            more = {"CAUSEWAY_HTTP__HEALTH_PORTS": ports, "CAUSEWAY_COURIER_MAILBOX_LETTERS": room}
            await self._hire_service(name, "services.courier", more)
        for name in ("registry", "depot"):
            await self._until(lambda name=name: ready(self.settings, name), f"{name} to be ready")  # type: ignore[misc]
        await self._until(self.active_courier, "a courier to be active")
        await self._enrol()
        config = OfficeConfig(
            ledger=self.root / "office.db", go=self.go, fleet=FLEET, devices=self.load.names, letters=self.load.down
        )
        (self.root / "office.json").write_text(config.model_dump_json())
        await self._hire_service(OFFICE, office.__name__, {office.CONFIG: str(self.root / "office.json")})
        await self._until(lambda: ready(self.settings, office.SERVICE), "the office to be ready")

    def begin(self) -> None:
        """Let the load begin."""
        part = self.go.with_suffix(".part")
        part.write_text(Go(start=time.time(), duration_s=self.load.duration_s).model_dump_json())
        part.replace(self.go)

    def device_folder(self, number: int) -> Path:
        """Of one device: its program's ledger, and the runtime's state."""
        return self.root / f"site{self.load.site_of(number)}" / self.load.names[number]

    def active_courier(self) -> str | None:
        """Name of the courier that says it is active."""
        for name in COURIERS:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._health[name]}/metrics", timeout=0.5) as page:
                    if b"causeway_courier_active 1.0" in page.read():
                        return name
            except (urllib.error.URLError, OSError):
                continue
        return None

    async def hit(self, fault: Fault, seed: int) -> str:
        """Carry out one fault and mend it; returns what it really hit."""
        kind, lasts = fault.kind, fault.lasts_s
        if fault.site is not None and kind != "agents_killed":
            site = self.sites[fault.site]
            await asyncio.to_thread(site.break_link, kind, seed)
            try:
                await asyncio.sleep(lasts)
            finally:
                await asyncio.to_thread(site.mend_link)
            return f"site{fault.site}"
        target = await self._target(fault)
        if kind == "courier_frozen":
            await self.crew.freeze(target, lasts)
        else:
            number = signal.SIGTERM if kind == "bus_restarted" else signal.SIGKILL
            await self.crew.kill(target, lasts, number)
        return target

    async def _target(self, fault: Fault) -> str:
        if fault.site is not None:
            return f"site{fault.site}"
        if fault.kind in {"bus_killed", "bus_restarted"}:
            return BUS
        if fault.kind == "poster_killed":
            return OFFICE
        # Right after another fault nobody may be active yet.
        active = COURIERS[0]
        with contextlib.suppress(ChaosError):
            active = str(await until(self.active_courier, "a courier to be active", ACTIVE_S))
        return active if fault.kind != "standby_killed" else next(name for name in COURIERS if name != active)

    async def _enrol(self) -> None:
        shares = self.load.shares()
        members: dict[int, list[Device]] = {}
        bus = await connect(self.state, self.settings, "operator")
        try:
            for number, (name, letters) in enumerate(zip(self.load.names, shares, strict=True)):
                token = await rpc.call(bus, "registry", "token", TokenRequest(fleet=FLEET, device=name))
                folder = self.device_folder(number)
                folder.mkdir(parents=True)
                (folder / "token").write_text(json.dumps(token))
                bound = OVERFLOWING_LETTERS if number == OVERFLOWING else None
                members.setdefault(self.load.site_of(number), []).append(
                    Device(name=name, letters=letters, max_letters=bound)
                )
        finally:
            await bus.close()
        for site in self.sites:
            folder = self.root / f"site{site.number}"
            config = SiteConfig(folder=folder, go=self.go, ready=folder / "ready", devices=members.get(site.number, []))
            (folder / "site.json").write_text(config.model_dump_json())
            command = [*site.machine.prefix, sys.executable, "-m", "tests.chaos.site", str(folder / "site.json")]
            log = folder / "agents.log"
            await self.crew.hire(Child(f"site{site.number}", command, lambda log=log: log.open("ab")))  # type: ignore[misc]
        waiting = [self.root / f"site{site.number}" / "ready" for site in self.sites]
        enrolled = "every device to be enrolled"
        await self._until(lambda: all(path.exists() for path in waiting), enrolled, ENROL_S * self.load.devices)

    async def _until(self, probe: Callable[[], object], what: str, timeout_s: float = START_S) -> None:
        def seen() -> object:
            ends = self.crew.own_ends
            if sum(ends.values()) > MAX_ENDS:
                raise ChaosError(
                    f"waiting for {what}: processes end by themselves: {dict(ends)}; see the logs in {self.root}"
                )
            return probe()

        await until(seen, what, timeout_s)

    async def _hire_service(self, name: str, module: str, environment: dict[str, str] | None = None) -> None:
        log = self.state.logs / f"{name}.log"
        command = [sys.executable, "-m", module, "--state", str(self.state.root)]
        await self.crew.hire(Child(name, command, lambda: log.open("ab"), environment or {}))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
