"""Letters per second through one courier process, and how long a letter waits for its receipt, beside two peers.

Ours: letters that were signed beforehand, over MQTT, nats-server and UP to one courier, which verifies each signature,
orders it in its lane, stores it in IN and signs receipts; the time runs from the first letter sent until the last
receipt is back. Afterwards IN is read: every letter once and in order. Peers: JetStream's publish with acknowledgement
from nats-py into a stream like IN, and MQTT QoS 1 through Mosquitto to a subscriber that writes SQLite; both send the
same bytes, and neither verifies, orders or signs anything. Everything shares the same cores; no TLS (all on 127.0.0.1)
in the first part, TLS in the second, which sends at a steady rate.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from nats.js.api import StorageType, StreamConfig
from ulid import ULID

from bench.counter import Counter
from bench.letter_load import Plan, Sender
from bench.mosquitto import mosquitto
from bench.platform import BenchDevice, enrol, mint, pid_of, started, state_folder
from bench.processes import cpu_s, free_port, read_json, running, until
from bench.report import BenchError, Target, arguments, conduct, percentile, say
from bench.roundtrip import Pace, connected, up
from bench.stall import probing
from services.courier.up.ordering import parse_message_id
from services.kit.bus import Bus, on_bus
from services.kit.folder import StateFolder
from services.kit.permissions import AUDITOR
from services.kit.puller import scan
from services.kit.settings import Settings
from services.kit.streams import IN

SERVICES = ("registry", "courier")
STREAM = "BENCH"
SETTLE_S = 60.0
START_S = 300.0
"""Signing takes its time before the clock starts."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much; `window` letters of a device are on their way, as the edge runtime does at most."""

    devices: int
    letters: int
    rounds: int
    rate: float
    seconds: float
    window: int = 128


async def generate(plan: Plan, folder: Path, pids: dict[str, int]) -> dict[str, Any]:
    """Have a generator send its letters.

    Returns:
        What it says, and the processor time of each of `pids` in microseconds per letter.
    """
    log = folder / "load.log"
    async with running([sys.executable, "-m", "bench.letter_load"], log, pipes=True) as generator:
        assert generator.stdin is not None
        generator.stdin.write(plan.write())
        try:
            ready = await read_json(generator, "the letters to be signed", START_S)
            pids = pids | {"generator": generator.pid}
            before = {name: cpu_s(pid) for name, pid in pids.items()}
            generator.stdin.write(b"go\n")
            answer = await read_json(generator, "the letters to be answered", START_S)
            used = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
        except BenchError as error:
            raise BenchError(f"{error}; the generator's log:\n{log.read_text()[-2000:]}") from error
    cpu = {name: round(1e6 * spent / answer["letters"], 1) for name, spent in used.items()}
    return answer | {"packet_bytes": ready["packet_bytes"], "cpu_us_per_letter": cpu}


async def ours(load: Load) -> dict[str, Any]:
    """One turn of the courier, in a platform of its own."""
    async with state_folder(tls=False) as (state, settings), started(state, SERVICES) as supervisor:
        devices = mint(state, load.devices)
        await enrol(state, settings, devices)
        plan = Plan("127.0.0.1", settings.bus.mqtt_port, settings.platform, people(devices), load.letters, load.window)
        pids = {name: pid_of(supervisor, name) for name in ("nats-server", "courier")}
        answer = await generate(plan, state.root, pids)
        async with on_bus(state, settings, AUDITOR) as bus:
            answer |= await read_in(bus, load)
        return answer | {"per_s": round(answer["letters"] / answer["took_s"])}


async def read_in(bus: Bus, load: Load) -> dict[str, int]:
    """What IN holds of the letters: lost, twice and out of order, by its headers."""
    seen: dict[tuple[str, str], list[int]] = {}
    async for message in scan(bus, IN.name, headers_only=True):
        found = parse_message_id((message.headers or {}).get("Nats-Msg-Id", ""))
        if found is not None:
            key, sequence = found
            seen.setdefault((key.device, key.epoch), []).append(sequence)
    expected = set(range(1, load.letters + 1))
    return {
        "lost": load.devices * load.letters - sum(len(expected & set(found)) for found in seen.values()),
        "twice": sum(len(found) - len(set(found)) for found in seen.values()),
        "out_of_order": sum(a >= b for found in seen.values() for a, b in pairwise(found)),
    }


def people(devices: Sequence[BenchDevice]) -> list[tuple[str, str, str, str, str]]:
    """Devices as a plan names them."""
    return [
        (d.address.fleet, d.address.device, d.client_id, d.jwt, base64.b64encode(d.signer.seed).decode())
        for d in devices
    ]


async def nats_publish(load: Load, at_once: int) -> int:
    """Publishes per second with JetStream's acknowledgement, `at_once` of them in flight."""
    async with AsyncExitStack() as stack:
        state, settings = await stack.enter_async_context(state_folder(tls=False))
        await stack.enter_async_context(started(state, ()))
        bus = await stack.enter_async_context(on_bus(state, settings, "courier"))
        await bus.js.add_stream(StreamConfig(name=IN.name, subjects=["cw.in.>"], storage=StorageType.FILE))
        bodies = await asyncio.to_thread(_bodies, load)
        count = min(load.devices * load.letters, 20_000 if at_once > 1 else 4_000)
        gate = asyncio.Semaphore(at_once)

        async def publish(number: int) -> None:
            async with gate:
                headers = {"Nats-Msg-Id": f"bench:{number}"}
                await bus.js.publish("cw.in.sample.bench.d0000", bodies[number % len(bodies)], headers=headers)

        begun = time.monotonic()
        if at_once == 1:
            for number in range(count):
                await publish(number)
        else:
            await asyncio.gather(*(publish(number) for number in range(count)))
        return round(count / (time.monotonic() - begun))


def _bodies(load: Load) -> list[bytes]:
    """Envelopes as devices send them."""
    sender = Sender(Plan("", 0, str(ULID()), [], min(load.letters, 200), 1), ("bench", "d0000", "", "", _seed()))
    return [packet[packet.index(b'{"payloadType"') :] for packet in sender.packets]


def _seed() -> str:
    return base64.b64encode(bytes(range(32))).decode()


async def mqtt_qos1(load: Load) -> dict[str, Any]:
    """Letters per second from the same generator through Mosquitto into SQLite."""
    port = free_port()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="causeway-bench-")))
        stored = (f"listener {port} 127.0.0.1", "user root", "persistence true", f"persistence_location {folder}/")
        # Its default of 1,000 queued messages would drop letters while the subscriber writes.
        unlimited = ("max_queued_messages 0", "max_queued_bytes 0", "max_inflight_messages 0")
        broker = await stack.enter_async_context(mosquitto(folder, port, *stored, *unlimited))
        command = [sys.executable, "-m", "bench.peer_ledger", "--port", str(port)]
        command += ["--counter", str(folder / "count"), "--database", str(folder / "letters.db")]
        counter = Counter(folder / "count")
        subscriber = await stack.enter_async_context(running(command, folder / "ledger.log", pipes=True))
        await read_json(subscriber, "the subscriber to be ready", 30)
        names = [("bench", f"d{n:04d}", f"bench{n}", "none", _seed()) for n in range(load.devices)]
        begun_with = {"mosquitto": broker, "subscriber": subscriber.pid}
        plan = Plan("127.0.0.1", port, "", names, load.letters, load.window)
        answer = await generate(plan, folder, begun_with)
        expected = load.devices * load.letters
        await until(lambda: counter.value >= expected, f"{expected} letters in SQLite", SETTLE_S)
        # One clock for all processes.
        return answer | {"per_s": round(expected / (time.monotonic() - answer["begun"]))}


async def receipts(load: Load) -> dict[str, float]:
    """Letter to verified receipt at a steady rate over TLS; first spread over many devices, then from few.

    Returns:
        The figures; after a stall how long it was, and what the disk and the processors did meanwhile.
    """
    pace = Pace(
        devices=round(load.rate / 2), busy_devices=max(1, round(load.rate / 20)), per_s=load.rate, seconds=load.seconds
    )
    async with state_folder(tls=True) as (state, settings), started(state, SERVICES):
        with probing(state.root) as probe:
            spread, coalesced = await _receipts(state, settings, pace)
    return {
        "receipt_p50_ms": round(1_000 * percentile(spread, 50), 2),
        "receipt_p99_ms": round(1_000 * percentile(spread, 99), 2),
        "receipt_coalesced_p99_ms": round(1_000 * percentile(coalesced, 99), 2),
    } | probe.explain(max(spread + coalesced))


async def _receipts(state: StateFolder, settings: Settings, pace: Pace) -> tuple[list[float], list[float]]:
    async with connected(state, settings, pace.devices, state.root) as devices:
        say(f"{len(devices)} devices are connected over TLS; {pace.per_s:.0f} letters/s for {pace.seconds:.0f} s")
        spread = await up(devices, pace)
        return spread, await up(devices[: pace.busy_devices], pace)


async def run(load: Load) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every contender, in turns, then the steady rate.

    Returns:
        The figures, and how they came about.
    """
    turns: dict[str, list[Any]] = {"ours": [], "mqtt_qos1": [], "nats_publish": [], "nats_publish_one_at_a_time": []}
    for number in range(load.rounds):
        turns["ours"].append(await ours(load))
        turns["mqtt_qos1"].append(await mqtt_qos1(load))
        turns["nats_publish"].append(await nats_publish(load, 256))
        turns["nats_publish_one_at_a_time"].append(await nats_publish(load, 1))
        say(f"round {number + 1} of {load.rounds}: { {name: turn[-1] for name, turn in turns.items()} }")
    figures: dict[str, Any] = {"letters_per_s": median(turn["per_s"] for turn in turns["ours"])}
    figures |= await receipts(load)
    for problem in ("lost", "twice", "out_of_order"):
        figures[problem] = sum(turn[problem] for turn in turns["ours"])
    figures["nats_publish_per_s"] = median(turns["nats_publish"])
    figures["nats_publish_one_at_a_time_per_s"] = median(turns["nats_publish_one_at_a_time"])
    figures["mqtt_qos1_per_s"] = median(turn["per_s"] for turn in turns["mqtt_qos1"])
    return figures, {"turns": turns}


def main() -> None:
    """Command line."""
    parser = arguments("letters", __doc__ or "")
    parser.add_argument("--devices", type=int, default=100, help="devices that send (default: 100)")
    parser.add_argument("--letters", type=int, help="letters of each (default: 600, quick 60)")
    parser.add_argument("--rounds", type=int, help="turns of each contender (default: 3, quick 1)")
    parser.add_argument("--rate", type=float, help="letters per second of the second part (default: 500, quick 100)")
    options = parser.parse_args()
    load = Load(
        devices=options.devices,
        letters=options.letters or (60 if options.quick else 600),
        rounds=options.rounds or (1 if options.quick else 3),
        rate=options.rate or (100.0 if options.quick else 500.0),
        seconds=5.0 if options.quick else 20.0,
    )
    targets = (
        Target("letters_per_s", 4_000, at_least=True),
        Target("receipt_p99_ms", 100, at_least=False),
        Target("lost", 0, at_least=False),
    )
    parameters = {
        "devices": load.devices,
        "letters_of_each": load.letters,
        "window": load.window,
        "rounds": load.rounds,
        "rate_per_s": load.rate,
        "seconds": load.seconds,
        "quick": options.quick,
    }
    conduct("letters", run(load), targets, parameters=parameters, as_json=options.json)


if __name__ == "__main__":
    main()
