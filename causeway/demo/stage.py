"""What every scene of the demo works with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from causeway.audit.collect import waiting_letters
from causeway.demo.attacker import Eavesdropper
from causeway.demo.checks import DemoError, DemoReport
from causeway.demo.fleet import DemoDevice
from causeway.demo.forwarder import Forwarder
from causeway.platform.supervisor import Supervisor
from causeway.sdk import Orchestrator
from services.kit.api.aggregator import JobView
from services.kit.errors import UnreachableError
from services.kit.folder import StateFolder
from services.kit.settings import Settings

T = TypeVar("T")
POLL_S = 0.2


@dataclass
class Stage:
    """The platform, the devices and the report."""

    root: Path
    state: StateFolder
    settings: Settings
    platform: Orchestrator
    console: Console
    report: DemoReport
    supervisor: Supervisor
    devices: list[DemoDevice] = field(default_factory=list)
    rollout: str = ""
    link: Forwarder | None = None
    spy: Eavesdropper | None = None

    @property
    def fleet(self) -> str:
        """Name of the fleet."""
        return self.settings.fleet

    @property
    def lost(self) -> DemoDevice:
        """The device whose link will be cut."""
        return self.devices[4]

    @property
    def weak(self) -> DemoDevice:
        """The device at 10 % battery."""
        return self.devices[-1]

    @property
    def victim(self) -> DemoDevice:
        """The device that is attacked."""
        return self.devices[1]

    @property
    def forwarder(self) -> Forwarder:
        """The lost device's link."""
        if self.link is None:
            raise DemoError("the forwarder was not started")
        return self.link

    def say(self, text: str) -> None:
        """A line of the story."""
        self.console.print(text, highlight=False)

    def waiting_letters(self, device: DemoDevice) -> int:
        """Letters in a device's outbox that have no receipt."""
        return waiting_letters(device.state / "outbox.db")

    async def job(self, name: str) -> JobView | None:
        """A job, or None while the aggregator is being started again."""
        try:
            return await self.platform.job(name)
        except UnreachableError:
            return None

    async def until(self, probe: Callable[[], Awaitable[T | None]], what: str, timeout_s: float) -> T:
        """Repeat `probe` until it returns something true.

        Raises:
            DemoError: after `timeout_s`, or if an agent died.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            value = await probe()
            if value:
                return value
            dead = [device for device in self.devices if device.process is not None and not device.alive]
            if dead:
                raise DemoError(f"waiting for {what}: {dead[0].name} ended:\n{dead[0].log()[-2000:]}")
            if time.monotonic() > deadline:
                raise DemoError(f"waited {timeout_s:.0f} s for {what}; last seen: {value!r}")
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        """End every device and the link."""
        if self.spy is not None:
            self.spy.stop()
        await asyncio.gather(*(device.stop() for device in self.devices))
        if self.link is not None:
            await self.link.close()
