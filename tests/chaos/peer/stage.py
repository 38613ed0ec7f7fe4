"""Mosquitto, a consumer, a poster and all sites as real processes behind the same cables, hit by the same faults."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.chaos.ledger import count
from tests.chaos.network import Site
from tests.chaos.pace import Go
from tests.chaos.peer import roles
from tests.chaos.peer.roles import PeerConfig
from tests.chaos.plan import Fault, Kind
from tests.chaos.processes import ChaosError, Child, Crew, until
from tests.chaos.stage import Load
from tests.support.platform import accepts

START_S = 60.0
PORT = 1883
TARGETS: dict[Kind, tuple[str, signal.Signals] | None] = {
    "bus_killed": ("mosquitto", signal.SIGKILL),
    "bus_restarted": ("mosquitto", signal.SIGTERM),
    "courier_killed": ("consumer", signal.SIGKILL),
    "courier_frozen": ("consumer", signal.SIGSTOP),
    # Nothing stands by here.
    "standby_killed": None,
    "poster_killed": ("poster", signal.SIGKILL),
}


@dataclass(frozen=True, slots=True)
class Broker:
    """A configuration of Mosquitto, with the words for the report."""

    name: str
    lines: tuple[str, ...]


SHIPPED = Broker("mqtt_qos1", ("persistence true",))
"""As Debian ships it: sessions are kept on disk; 1,000 messages per client are queued, saved every 30 minutes."""
TUNED = Broker(
    "mqtt_qos1_tuned",
    ("persistence true", "max_queued_messages 0", "autosave_interval 5", "max_inflight_messages 100"),
)
"""With everything that its manual offers against losses: no bound of the queue, saved every 5 s."""


class PeerStage:
    """One run of the peer."""

    def __init__(self, root: Path, load: Load, host: str, sites: list[Site], broker: Broker) -> None:
        root.mkdir(parents=True)
        self.root = root
        self.load = load
        self._host = host
        self._sites = sites
        self._broker = broker
        self.crew = Crew()
        self._go = root / "go.json"

    async def start(self) -> None:
        """Broker, consumer, sites, poster."""
        found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if found is None:
            raise ChaosError(
                "start the peer: mosquitto is not installed; `apt-get install mosquitto`, or pass --peer-minutes 0"
            )
        lines = (f"listener {PORT} {self._host}", "allow_anonymous true", "user root", *self._broker.lines)
        conf = self.root / "mosquitto.conf"
        conf.write_text("\n".join((*lines, f"persistence_location {self.root}/", "")))
        await self.crew.hire(Child("mosquitto", [found, "-c", str(conf)], self._log("mosquitto")))
        await until(lambda: accepts(self._host, PORT), "mosquitto to listen", START_S)
        names = self.load.names
        await self._hire("consumer", [], {})
        for site in self._sites:
            own = [n for n in range(len(names)) if self.load.site_of(n) == site.number]
            letters = {names[n]: self.load.shares()[n] for n in own}
            await self._hire(f"site{site.number}", site.machine.prefix, letters, "site")
        turns = {name: self.load.down // len(names) + (n < self.load.down % len(names)) for n, name in enumerate(names)}
        await self._hire("poster", [], turns)
        files = [self.root / f"{name}.ready" for name in self.crew.children if name != "mosquitto"]
        await until(lambda: all(file.exists() for file in files), "the peer's programs", START_S)

    def begin(self) -> None:
        """Let the load begin."""
        part = self._go.with_suffix(".part")
        part.write_text(Go(start=time.time(), duration_s=self.load.duration_s).model_dump_json())
        part.replace(self._go)

    async def hit(self, fault: Fault, seed: int) -> str:
        """Carry out one fault and mend it."""
        if fault.site is not None and fault.kind != "agents_killed":
            site = self._sites[fault.site]
            await asyncio.to_thread(site.break_link, fault.kind, seed)
            try:
                await asyncio.sleep(fault.lasts_s)
            finally:
                await asyncio.to_thread(site.mend_link)
            return f"site{fault.site}"
        target = (f"site{fault.site}", signal.SIGKILL) if fault.site is not None else TARGETS[fault.kind]
        if target is None:
            return "nothing"
        name, number = target
        if number == signal.SIGSTOP:
            await self.crew.freeze(name, fault.lasts_s)
        else:
            await self.crew.kill(name, fault.lasts_s, number)
        return name

    def counts(self) -> tuple[int, int, int, int]:
        """Sent, taken by the consumer, posted, taken by devices."""
        devices = [self.root / f"{name}.db" for name in self.load.names]
        return (
            sum(count(path, "sent") for path in devices),
            count(self.root / "consumer.db", "taken"),
            count(self.root / "poster.db", "sent"),
            sum(count(path, "taken") for path in devices),
        )

    async def _hire(self, name: str, prefix: list[str], letters: dict[str, int], role: str | None = None) -> None:
        config = PeerConfig(
            folder=self.root,
            go=self._go,
            ready=self.root / f"{name}.ready",
            host=self._host,
            port=PORT,
            letters=letters,
        )
        path = self.root / f"{name}.json"
        path.write_text(config.model_dump_json())
        command = [*prefix, sys.executable, "-m", roles.__name__, role or name, str(path)]
        await self.crew.hire(Child(name, command, self._log(name)))

    def _log(self, name: str) -> Callable[[], AbstractContextManager[BinaryIO]]:
        return lambda: (self.root / f"{name}.log").open("ab")
