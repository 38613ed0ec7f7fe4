"""One place: several devices' agents in one process, each with a program that sends and takes letters.

`python -m tests.chaos.site CONFIG`. Killed at any time and started again; what the programs remember is in their
ledgers, what the runtimes remember is theirs.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ulid import ULID

from edge_runtime import logs
from edge_runtime.agent import Agent
from edge_runtime.enrol import enrol
from edge_runtime.errors import OutboxError
from edge_runtime.identity import load_identity, read_token
from edge_runtime.ports import Context
from edge_runtime.settings import EdgeSettings, OutboxLimits
from schemas.events import DownLetter, Lane, Untyped
from schemas.scheduler import Cancel, Result
from tests.chaos.ledger import Entry, Ledger
from tests.chaos.pace import Go, Numbers

LEDGER = "program.db"
ENROL_AT_ONCE = 1
ENROL_TIMEOUT_S = 180.0
TICK_S = (0.2, 0.8)
BURST = 100
"""Letters that a program hands over in one go, to catch up after a time of death."""
_PAD = "x" * 100

log = logs.Log("edge_runtime.chaos")


class Device(BaseModel):
    """One device of a site."""

    name: str
    letters: int
    max_letters: int | None = None
    """Bound of its outbox, where it is meant to overflow."""


class SiteConfig(BaseModel):
    """What a site is told."""

    folder: Path
    go: Path
    ready: Path
    devices: list[Device]


class Program:
    """The owner's program inside one agent: numbers its letters, notes them, hands them over; notes what comes."""

    kinds = frozenset({"task", "cancel"})

    def __init__(self, context: Context, device: Device, config: SiteConfig, begun: asyncio.Event) -> None:
        self._sender = context.sender
        self._device = device
        self._go = config.go
        self._begun = begun
        self._ledger = Ledger(config.folder / device.name / LEDGER)
        self._life = str(ULID())
        self._waiting: list[Entry] = self._ledger.unhanded()
        self._numbers = Numbers({lane: number for (_, lane), number in self._ledger.highest().items()})
        self.work: asyncio.Task[None] | None = None

    async def resume(self) -> None:
        """Begin; first of all with what a crash left in doubt, under the same ids."""
        self.work = asyncio.create_task(self._run(), name=f"program {self._device.name}")
        self._begun.set()

    async def handle(self, letter: DownLetter[Any]) -> None:
        """Apply a letter down."""
        if isinstance(letter.data, Cancel):
            entry = Entry(self._device.name, letter.slot, int(letter.data.term or 0), letter.id)
        else:
            entry = Entry(self._device.name, "down", int(letter.data.inputs["number"]), letter.id)
        self._ledger.take(entry, self._life)

    async def close(self) -> None:
        """End."""
        if self.work is not None:
            self.work.cancel()
            await asyncio.gather(self.work, return_exceptions=True)
        self._ledger.close()

    async def _run(self) -> None:
        go = await Go.wait(self._go)
        total = self._device.letters
        while self._waiting or self._numbers.sent < total:
            if not self._waiting:
                due = min(go.due(total, time.time()) - self._numbers.sent, BURST)
                if due > 0:
                    self._waiting = [
                        Entry(self._device.name, lane, number, str(ULID())) for lane, number in self._numbers.take(due)
                    ]
                    self._ledger.intend(self._waiting)
            await self._hand_over()
            await asyncio.sleep(random.uniform(*TICK_S))

    async def _hand_over(self) -> None:
        while self._waiting:
            entry = self._waiting[0]
            try:
                self._send(entry)
            except OutboxError as error:
                # Full of more urgent ones: the program still has it and comes back.
                log.warning("program.refused", device=entry.device, reason=error.reason)
                return
            del self._waiting[0]
            await asyncio.sleep(0)

    def _send(self, entry: Entry) -> None:
        if entry.lane == "normal":
            output = {"lane": entry.lane, "number": entry.number, "pad": _PAD}
            result = Result(task=entry.letter, term=1, outcome="ok", output=output, took_s=0, cpu_s=0)
            self._sender.send("result", result, lane="normal", letter_id=entry.letter)
            return
        lane: Lane = "control" if entry.lane == "control" else "bulk"
        sample = Untyped.model_validate({"lane": entry.lane, "number": entry.number, "pad": _PAD})
        self._sender.send("sample", sample, lane=lane, letter_id=entry.letter)


async def run(config: SiteConfig) -> None:
    """Enrol who is not, then live until told to stop.

    Raises:
        ExceptionGroup: if an agent or a program ended by itself, which nothing here may make it do.
    """
    turn = asyncio.Semaphore(ENROL_AT_ONCE)
    settings = {device.name: _settings(config, device) for device in config.devices}

    def stop() -> None:
        for agent in agents:
            agent.stop()

    async def prepare(name: str) -> None:
        identity = load_identity(settings[name].state / "identity.json")
        if identity is None or identity.credentials is None:
            async with turn:
                token = read_token(config.folder / name / "token", datetime.now(UTC))
                await enrol(settings[name], token, timeout_s=ENROL_TIMEOUT_S)

    await asyncio.gather(*map(prepare, settings))
    agents: list[Agent] = []
    begun = [asyncio.Event() for _ in config.devices]
    programs: list[Program] = []

    def make(device: Device, begun: asyncio.Event) -> Agent:
        def parts(context: Context) -> list[Program]:
            programs.append(Program(context, device, config, begun))
            return programs[-1:]

        return Agent(settings[device.name], parts)

    agents += map(make, config.devices, begun)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            group.create_task(agent.run())
        await asyncio.gather(*(one.wait() for one in begun))
        config.ready.write_text(str(os.getpid()))
        for program in programs:
            group.create_task(_ended(program))


async def _ended(program: Program) -> None:
    assert program.work is not None
    try:
        await program.work
    except asyncio.CancelledError:
        if not program.work.cancelled():
            raise


def _settings(config: SiteConfig, device: Device) -> EdgeSettings:
    limits = OutboxLimits() if device.max_letters is None else OutboxLimits(max_letters=device.max_letters)
    return EdgeSettings(state=config.folder / device.name / "state", outbox=limits, worker_idle_s=1)


def main() -> None:
    """Run one site."""
    logs.configure(os.environ.get("CHAOS_LOG", "WARNING"))
    asyncio.run(run(SiteConfig.model_validate_json(Path(sys.argv[1]).read_bytes())))


if __name__ == "__main__":
    main()
