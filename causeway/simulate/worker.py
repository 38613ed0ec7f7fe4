"""One process of simulated devices: `python -m causeway.simulate.worker` takes a plan and moves them by it.

Writes one line of JSON at the end: every letter with the trace time at which its device handed it to the outbox.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from causeway.simulate.device import SimulatedDevice
from edge_runtime import logs
from edge_runtime.identity import Identity
from edge_runtime.trust.record import TrustRecord

MAX_LINE = 64 << 20


@dataclass(frozen=True, slots=True)
class Schedule:
    """One device.

    Attributes:
        identity: as JSON; a secret.
        periods: begin and end of each time with a link, in hours of the trace.
        letters: times at which it writes one.
    """

    folder: str
    identity: str
    periods: list[tuple[float, float]]
    letters: list[float]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process does.

    Attributes:
        hours: of the trace; then it ends.
        hours_per_s: compression.
        trust: `TrustRecord` as JSON.
    """

    hours: float
    hours_per_s: float
    trust: str
    devices: list[Schedule]

    def write(self) -> bytes:
        """One line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def read(cls, line: str) -> Plan:
        """What `write` wrote."""
        fields: dict[str, Any] = json.loads(line)
        devices = [Schedule(**each) for each in fields.pop("devices")]
        return cls(**fields, devices=devices)


class Stage:
    """Moves the devices of a plan."""

    def __init__(self, plan: Plan) -> None:
        trust = TrustRecord.read(plan.trust.encode())
        self._plan = plan
        self._devices = [
            SimulatedDevice(Path(each.folder), Identity.read(each.identity.encode()), trust) for each in plan.devices
        ]
        self._written: list[list[tuple[str, float]]] = [[] for _ in plan.devices]
        self._busy: dict[int, asyncio.Task[None]] = {}
        self._wanted: dict[int, bool] = {}

    async def run(self, begun: float) -> list[list[tuple[str, float]]]:
        """Follow the trace from `begun` (seconds since 1970) on, to its end.

        Returns:
            Id of each letter, and the hour of the trace at which it was on disk, per device.
        """
        try:
            for at, place, what in _moments(self._plan):
                wait_s = begun + at / self._plan.hours_per_s - time.time()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                if what == "letter":
                    letter_id = self._devices[place].write()
                    self._written[place].append((letter_id, (time.time() - begun) * self._plan.hours_per_s))
                else:
                    self._switch(place, on=what == "on")
            await asyncio.sleep(max(0.0, begun + self._plan.hours / self._plan.hours_per_s - time.time()))
        finally:
            await asyncio.gather(*self._busy.values(), return_exceptions=True)
            await asyncio.gather(*(device.close() for device in self._devices))
        return self._written

    def _switch(self, place: int, *, on: bool) -> None:
        """In the background, and to the newest wish: a trace may flip faster than a connection can be ended."""
        self._wanted[place] = on
        running = self._busy.get(place)
        if running is not None and running.done():
            running.result()
            running = None
        if running is None:
            self._busy[place] = asyncio.create_task(self._obey(place))

    async def _obey(self, place: int) -> None:
        while (on := self._wanted.pop(place, None)) is not None:
            device = self._devices[place]
            await (device.connect() if on else device.disconnect())


def _moments(plan: Plan) -> list[tuple[float, int, str]]:
    return sorted(
        moment
        for place, device in enumerate(plan.devices)
        for moment in (
            *((begin, place, "on") for begin, _ in device.periods),
            *((end, place, "off") for _, end in device.periods if end < plan.hours),
            *((at, place, "letter") for at in device.letters),
        )
    )


async def _serve() -> None:
    reader = asyncio.StreamReader(limit=MAX_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    stage = Stage(Plan.read((await reader.readline()).decode()))
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    begun = float((await reader.readline()).decode())
    sys.stdout.write(json.dumps(await stage.run(begun)) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    logs.configure("ERROR")
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
