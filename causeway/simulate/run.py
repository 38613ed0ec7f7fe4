"""A simulation from beginning to end: a platform, devices on a trace, what came of their letters, and the theory."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from random import Random

from causeway.platform.init import InitOptions, init_platform
from causeway.platform.lifeline import die_with_parent
from causeway.platform.supervisor import Supervisor
from causeway.simulate.availability import TRACES, Availability
from causeway.simulate.people import enrol, make_people, trust_of
from causeway.simulate.statistics import Delay
from causeway.simulate.worker import MAX_LINE, Plan, Schedule
from edge_runtime.identity import Identity
from schemas.depot import TrustState
from schemas.envelope import parse
from schemas.topics import in_pattern
from services.kit import rpc
from services.kit.bus import Bus, on_bus
from services.kit.errors import PlatformError
from services.kit.folder import StateFolder
from services.kit.permissions import AUDITOR, OPERATOR
from services.kit.puller import scan, stored_s
from services.kit.streams import IN

SERVICES = ("registry", "depot", "courier")
DEVICES_PER_PROCESS = 100
HOUR_S = 3_600.0
START_DELAY_S = 0.5
READY_TIMEOUT_S = 120.0
GRACE_S = 60.0
"""For the processes to write down what they did, after the trace has ended."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated.

    Attributes:
        hours: of the trace.
        speed: hours of the trace per hour of the clock.
        letters_per_hour: each device writes, at random moments.
    """

    devices: int
    trace: str
    hours: float
    speed: float
    letters_per_hour: float
    seed: int

    @property
    def availability(self) -> Availability:
        """The trace's process."""
        return TRACES[self.trace]

    @property
    def hours_per_s(self) -> float:
        """Hours of the trace per second of the clock."""
        return self.speed / HOUR_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the letters.

    Attributes:
        delays: of each, in hours of the trace.
        possible: the same letters' delays if nothing but the trace made them wait.
        connected: those of letters that were written while there was a link.
        written: how many the outboxes took.
        stored: how many of these the platform holds, whenever they came.
        twice: letters that are there more than once.
        strangers: letters that no device wrote.
    """

    delays: tuple[Delay, ...]
    possible: tuple[Delay, ...]
    connected: tuple[Delay, ...]
    written: int
    stored: int
    twice: int
    strangers: int


async def simulate(scenario: Scenario, progress: Progress) -> Outcome:
    """Run devices against a platform of their own, in a temporary folder.

    Raises:
        PlatformError: if the platform does not start, or a process of devices ends early.
    """
    with tempfile.TemporaryDirectory(prefix="causeway-simulate-") as name:
        root = Path(name)
        state = StateFolder(root / "state")
        settings = init_platform(state, InitOptions(free_ports=True))
        supervisor = Supervisor(state, SERVICES)
        try:
            await supervisor.start(progress)
            progress(f"enrolling {scenario.devices} devices")
            people = make_people(state, settings, scenario.devices)
            async with on_bus(state, settings, "registry") as bus:
                await enrol(bus, state, [record for _, record in people])
            async with on_bus(state, settings, OPERATOR) as bus:
                head = TrustState.model_validate((await rpc.call(bus, "depot", "trust"))["head"])
            schedules = schedule(scenario, [identity for identity, _ in people], root / "devices")
            trust = trust_of(state, head).write().decode()
            begun, written = await _play(scenario, schedules, trust, state.logs, progress)
            async with on_bus(state, settings, AUDITOR) as bus:
                arrivals = await _arrivals(bus)
        finally:
            await supervisor.stop()
    return judge(scenario, schedules, written, [(i, (at - begun) * scenario.hours_per_s) for i, at in arrivals])


def schedule(scenario: Scenario, identities: Sequence[Identity], folder: Path) -> list[Schedule]:
    """When each device has a link, and when it writes; the same for the same seed."""
    schedules = []
    for place, identity in enumerate(identities):
        random = Random(f"{scenario.seed}/{place}")  # noqa: S311 - a simulation is to be repeated
        letters = []
        at = random.expovariate(scenario.letters_per_hour)
        while at < scenario.hours:
            letters.append(at)
            at += random.expovariate(scenario.letters_per_hour)
        periods = list(scenario.availability.periods(random, scenario.hours))
        schedules.append(Schedule(str(folder / identity.device), identity.write().decode(), periods, letters))
    return schedules


def judge(
    scenario: Scenario,
    schedules: Sequence[Schedule],
    written: Sequence[Sequence[tuple[str, float]]],
    arrivals: Sequence[tuple[str, float]],
) -> Outcome:
    """Put what devices wrote beside what the platform holds.

    Args:
        scenario: of both.
        schedules: one per device.
        written: ids and hours, per device.
        arrivals: ids and hours, in the order of IN.
    """
    stored: dict[str, float] = {}
    twice = 0
    for letter_id, at in arrivals:
        twice += letter_id in stored
        stored.setdefault(letter_id, at)
    delays, possible, connected = [], [], []
    known = set()
    for device, letters in zip(schedules, written, strict=True):
        for letter_id, at in letters:
            known.add(letter_id)
            came = stored.get(letter_id)
            delivered = came is not None and came <= scenario.hours
            end = came if came is not None and delivered else scenario.hours
            # Both clocks are this machine's; a letter may be stored within the resolution of its own moment.
            delay = Delay(max(0.0, end - at), delivered)
            delays.append(delay)
            linked = next((max(begin, at) for begin, until in device.periods if at < until), None)
            possible.append(Delay(max(0.0, (scenario.hours if linked is None else linked) - at), linked is not None))
            if linked == at:
                connected.append(delay)
    return Outcome(
        tuple(delays),
        tuple(possible),
        tuple(connected),
        written=len(known),
        stored=len(known & set(stored)),
        twice=twice,
        strangers=len(set(stored) - known),
    )


async def _play(
    scenario: Scenario, schedules: list[Schedule], trust: str, logs: Path, progress: Progress
) -> tuple[float, list[list[tuple[str, float]]]]:
    """Run the trace.

    Returns:
        When it began, in seconds since 1970, and what each device wrote.
    """
    parts = ceil(len(schedules) / DEVICES_PER_PROCESS)
    async with AsyncExitStack() as stack:
        workers = []
        for number in range(parts):
            log = logs / f"devices-{number}.log"
            worker = await stack.enter_async_context(_worker(log))
            plan = Plan(scenario.hours, scenario.hours_per_s, trust, schedules[number::parts])
            assert worker.stdin is not None
            worker.stdin.write(plan.write())
            workers.append((worker, log))
        for worker, log in workers:
            await _read(worker, log, READY_TIMEOUT_S)
        length_s = scenario.hours / scenario.hours_per_s
        progress(f"the trace runs: {scenario.hours:g} hours in {length_s:.0f} s")
        begun = time.time() + START_DELAY_S
        for worker, _ in workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{begun!r}\n".encode())
        written: list[list[tuple[str, float]]] = [[] for _ in schedules]
        for number, (worker, log) in enumerate(workers):
            written[number::parts] = json.loads(await _read(worker, log, length_s + GRACE_S))
        return begun, written


@asynccontextmanager
async def _worker(log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "causeway.simulate.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            preexec_fn=die_with_parent,
            limit=MAX_LINE,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _read(worker: asyncio.subprocess.Process, log: Path, timeout_s: float) -> str:
    assert worker.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            line = await worker.stdout.readline()
    except TimeoutError as error:
        raise PlatformError(f"simulate devices: a process of them was silent for {timeout_s:.0f} s") from error
    if not line:
        raise PlatformError(
            f"simulate devices: a process of them ended with {await worker.wait()}; its log:\n{_tail(log)}"
        )
    return line.decode()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2_000:]


async def _arrivals(bus: Bus) -> list[tuple[str, float]]:
    """Id of every letter in IN, in its order, and when the stream took it, in seconds since 1970."""
    return [
        (json.loads(parse(message.data).body)["id"], stored_s(message))
        async for message in scan(bus, IN.name, subject=in_pattern("sample"))
    ]
