"""Heartbeats per second from a thousand MQTT connections into a validated table, beside two peers.

Ours: MQTT listener of nats-server, JetStream (TELEMETRY), the registry's own process and table; each device has its own
JWT. Peers: Mosquitto and one subscriber process that validates with the same models into a dict; devices are anonymous.
The same generator sends the same messages to all, in turns, everything on the same cores, no TLS (all on 127.0.0.1).
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.counter import Counter
from bench.load import FIRST_UPTIME_S, Plan, heartbeat
from bench.mosquitto import mosquitto
from bench.platform import FLEET, BenchDevice, enrol, metric, mint, pid_of, started, state_folder
from bench.processes import cpu_s, free_port, read_json, running
from bench.report import BenchError, Target, arguments, conduct, say
from services.kit import rpc
from services.kit.api.registry import DeviceRequest, DeviceView
from services.kit.bus import on_bus
from services.kit.folder import StateFolder
from services.kit.permissions import OPERATOR
from services.kit.settings import Settings

OURS, FASTSTREAM, FASTSTREAM_BYTES, PAHO = "ours", "faststream_mqtt", "faststream_mqtt_bytes", "paho"
HEARTBEATS = 'causeway_heartbeats_total{outcome="accepted"}'
POLL_S = 0.05
COUNT_POLL_S = 0.005
SETTLE_S = 10.0
"""A receiver that counts nothing for so long has lost the rest."""


@dataclass(frozen=True, slots=True)
class Load:
    """How hard and how long."""

    connections: int
    seconds: float
    rounds: int
    window: int = 10_000
    burst: int = 1


@dataclass(frozen=True, slots=True)
class Receiver:
    """A contender that runs: where devices connect, its processes, and what checks its table afterwards."""

    port: int
    pids: dict[str, int]
    check: Callable[[dict[str, int]], Any] | None = None


Contender = Callable[[Counter, Path], AbstractAsyncContextManager[Receiver]]


@asynccontextmanager
async def ours(state: StateFolder, settings: Settings, counter: Counter, _folder: Path) -> AsyncIterator[Receiver]:
    """nats-server and the registry; its own metric is the count."""
    async with started(state, ("registry",)) as supervisor:
        begun = metric(settings, "registry", HEARTBEATS)

        async def follow() -> None:
            while True:
                counter.value = int(await asyncio.to_thread(metric, settings, "registry", HEARTBEATS) - begun)
                await asyncio.sleep(POLL_S)

        following = asyncio.create_task(follow())
        try:
            pids = {name: pid_of(supervisor, name) for name in ("nats-server", "registry")}
            yield Receiver(settings.bus.mqtt_port, pids, partial(check_table, state, settings))
        finally:
            following.cancel()


@asynccontextmanager
async def peer(command: list[str], counter: Counter, folder: Path) -> AsyncIterator[Receiver]:
    """Mosquitto with every limit off, and a subscriber that counts by itself."""
    port = free_port()
    unlimited = ("persistence false", "max_queued_messages 0", "max_queued_bytes 0", "max_connections -1")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(mosquitto(folder, port, f"listener {port} 127.0.0.1", *unlimited))
        extra = ["--port", str(port), "--counter", str(folder / "count")]
        log = folder / "subscriber.log"
        subscriber = await stack.enter_async_context(running([*command, *extra], log, pipes=True))
        try:
            await read_json(subscriber, "the subscriber to be ready", 30)
        except BenchError as error:
            raise BenchError(f"{error}; its log:\n{log.read_text()[-2000:]}") from error
        counter.value = 0
        yield Receiver(port, {"mosquitto": broker, "subscriber": subscriber.pid})


async def check_table(state: StateFolder, settings: Settings, counts: dict[str, int]) -> int:
    """How many of a sample of rows hold their device's very last message.

    Raises:
        BenchError: if one does not.
    """
    sample = sorted(counts)[:: max(1, len(counts) // 50)]
    async with on_bus(state, settings, OPERATOR) as bus:
        for device in sample:
            request = DeviceRequest(fleet=FLEET, device=device)
            view = DeviceView.model_validate(await rpc.call(bus, "registry", "show", request))
            expected = FIRST_UPTIME_S + counts[device] + 0.5
            if view.heartbeat is None or view.heartbeat.uptime_s != expected:
                raise BenchError(f"the table's row of {device} is not its last message: {view.heartbeat!r}")
    return len(sample)


async def measure(contender: Contender, devices: list[BenchDevice], load: Load, seconds: float) -> dict[str, Any]:
    """One turn of one contender, from its start to its end."""
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        folder = Path(name)
        counter = Counter(folder / "count")
        async with AsyncExitStack() as stack:
            receiver = await stack.enter_async_context(contender(counter, folder))
            log = folder / "load.log"
            command = [sys.executable, "-m", "bench.load"]
            generator = await stack.enter_async_context(running(command, log, pipes=True))
            assert generator.stdin is not None
            people = [(d.address.fleet, d.address.device, d.client_id, d.jwt) for d in devices]
            plan = Plan("127.0.0.1", receiver.port, str(folder / "count"), load.window, load.burst, people)
            generator.stdin.write(plan.write())
            try:
                connected = await read_json(generator, "the devices to connect", 120)
                # One message of each device first: its row is made then, and every program has run its code once.
                warm = await _round(generator, counter, 0, seconds=30, limit=1)
                pids = receiver.pids | {"generator": generator.pid}
                before = {part: cpu_s(pid) for part, pid in pids.items()}
                turn = await _round(generator, counter, warm["counted"], seconds=seconds, limit=1 << 40)
                used = {part: cpu_s(pid) - before[part] for part, pid in pids.items()}
            except BenchError as error:
                raise BenchError(f"{error}; the generator's log:\n{log.read_text()[-2000:]}") from error
            rows = await receiver.check(turn["counts"]) if receiver.check and not warm["lost"] + turn["lost"] else None
            return {
                "per_s": round(turn["counted"] / turn["took_s"]),
                "sent": turn["sent"],
                "lost": warm["lost"] + turn["lost"],
                "took_s": round(turn["took_s"], 2),
                "connected_s": connected["connected_s"],
                "rows_checked": rows,
                "cpu_us_per_message": {part: round(1e6 * used[part] / max(1, turn["counted"]), 1) for part in used},
            }


async def _round(
    generator: asyncio.subprocess.Process, counter: Counter, begun: int, *, seconds: float, limit: int
) -> dict[str, Any]:
    """Have the generator send, and wait until all is counted or nothing more comes."""
    assert generator.stdin is not None
    generator.stdin.write(json.dumps({"seconds": seconds, "limit": limit}).encode() + b"\n")
    answer = await read_json(generator, "the generator to finish", seconds + 60)
    expected = begun + answer["sent"]
    seen, moved = counter.value, time.monotonic()
    while seen < expected and time.monotonic() - moved < SETTLE_S:
        await asyncio.sleep(COUNT_POLL_S)
        if counter.value != seen:
            seen, moved = counter.value, time.monotonic()
    took = max(moved, answer["last"]) - answer["first"]
    if seen > expected:
        raise BenchError(f"{seen} heartbeats were counted, but only {expected} were sent; the count is wrong")
    return answer | {"counted": seen - begun, "lost": expected - seen, "took_s": took}


async def run(load: Load, peers: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every contender, in turns.

    Returns:
        The figures, and how they came about.
    """
    notes: dict[str, Any] = {}
    turns: dict[str, list[dict[str, Any]]] = {}
    async with state_folder(tls=False) as (state, settings):
        devices = mint(state, load.connections)
        say(f"minted {len(devices)} devices; writing their records")
        async with started(state, ()):
            await enrol(state, settings, devices)
        contenders: dict[str, Contender] = {OURS: partial(ours, state, settings)}
        interpreter = (peers / "bin" / "python").absolute()
        if interpreter.exists():
            command = [str(interpreter), "-m", "bench.peer_faststream"]
            contenders[FASTSTREAM] = partial(peer, command)
            contenders[FASTSTREAM_BYTES] = partial(peer, [*command, "--bytes"])
        else:
            notes[FASTSTREAM] = f"not measured: {peers} is missing; `make peers` makes it"
        contenders[PAHO] = partial(peer, [sys.executable, "-m", "bench.peer_paho"])
        for number in range(load.rounds):
            for name, contender in contenders.items():
                turn = await measure(contender, devices, load, load.seconds)
                turns.setdefault(name, []).append(turn)
                say(f"round {number + 1} of {load.rounds}: {name} {turn['per_s']}/s, {json.dumps(turn)}")

    def typical(name: str) -> float | None:
        return median(turn["per_s"] for turn in turns[name]) if name in turns else None

    figures: dict[str, Any] = {f"{name}_per_s": typical(name) for name in (OURS, FASTSTREAM, PAHO)}
    figures["lost"] = sum(turn["lost"] for turn in turns[OURS])
    figures["faststream_mqtt_bytes_per_s"] = typical(FASTSTREAM_BYTES)
    for name in (FASTSTREAM, PAHO):
        rate = figures[f"{name}_per_s"]
        figures[f"times_{name}"] = round(figures["ours_per_s"] / rate, 1) if rate else None
    return figures, {"turns": turns, "notes": notes, "message_bytes": len(heartbeat(devices[0].address))}


def main() -> None:
    """Command line."""
    parser = arguments("ingest", __doc__ or "")
    parser.add_argument("--connections", type=int, default=1_000, help="MQTT connections (default: 1000)")
    parser.add_argument("--burst", type=int, default=1, help="messages per write of a connection (default: 1)")
    parser.add_argument("--seconds", type=float, help="length of one turn (default: 12, quick 3)")
    parser.add_argument("--rounds", type=int, help="turns of each contender (default: 3, quick 1)")
    options = parser.parse_args()
    load = Load(
        connections=options.connections,
        seconds=options.seconds or (3.0 if options.quick else 12.0),
        rounds=options.rounds or (1 if options.quick else 3),
        burst=options.burst,
    )
    parameters = {
        "connections": load.connections,
        "seconds": load.seconds,
        "rounds": load.rounds,
        "burst": load.burst,
        "window": load.window,
        "quick": options.quick,
        "tls": False,
        "qos": 0,
    }
    targets = (
        Target("ours_per_s", 20_000, at_least=True),
        Target("times_faststream_mqtt", 5, at_least=True),
        Target("lost", 0, at_least=False),
    )
    work = run(load, options.peers)
    conduct("ingest", work, targets, parameters=parameters, as_json=options.json)


if __name__ == "__main__":
    main()
