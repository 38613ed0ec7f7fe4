"""How soon a whole fleet is in sync again when it returns at one moment, after a power cut.

Each device has its own JWT and TLS connection and finds three letters in its mailbox. It is in sync when it has its
receipt, its trust and its letters and has said `got`; the platform is when no letter is left. nats-server is killed
just before and started again, so that registry, depot and courier must find their way back meanwhile, and every device
counts as offline before. Server, services and devices share the same cores; the share of each is said. Figures of
single devices begin at their own first attempt to connect; all make it at the same moment, and repeat it as the agent
does.

Beside it, Mosquitto with as many persistent sessions of three queued QoS 1 messages: no identities, no signatures, and
a broker that was ended in order.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from bench import peer_sessions
from bench.fleet import Fleet, fleet, raise_files, spread
from bench.herd import Plan
from bench.platform import FLEET, BenchDevice, enrol, metric, mint, pid_of, started, state_folder
from bench.processes import cpu_s, listens, memory, until
from bench.report import BenchError, Target, arguments, conduct, percentile, say
from bench.roundtrip import Pace, assignment, steadily
from causeway.platform.nats_server import collector
from causeway.platform.supervisor import Supervisor
from schemas.depot import TrustAnnouncement
from schemas.topics import broadcast_subject
from services.kit import rpc
from services.kit.bus import Bus, on_bus
from services.kit.folder import StateFolder
from services.kit.keys import read_letter_key
from services.kit.mailbox import Mailbox
from services.kit.settings import Settings

SERVICES = ("registry", "depot", "courier")
PARTS = ("nats-server", *SERVICES)
SENDERS = ("courier", "ota")
"""Whose letters the devices verify."""
LETTERS = 3
MEMORY_MB_PER_THOUSAND = 61
"""What a platform of so many devices is advised to set (decision 19)."""
SYNC_TIMEOUT_S = 300.0
EMPTY_TIMEOUT_S = 30.0
QUIET_TIMEOUT_S = 120.0
QUIET_CPU = 0.2
"""Processor time of the whole platform in `QUIET_LOOK_S`, at most."""
QUIET_LOOK_S = 1.0
BROADCASTS = 3
BROADCAST_TIMEOUT_S = 30.0
DOWN_TIMEOUT_S = 30.0
POSTS_AT_ONCE = 200
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Size:
    """How many, how much."""

    devices: int
    at_once: int
    down: Pace
    peer: bool
    settle_s: float


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a measurement needs."""

    supervisor: Supervisor
    state: StateFolder
    settings: Settings
    mailbox: Mailbox
    devices: list[BenchDevice]
    fleet: Fleet

    def pids(self) -> dict[str, int]:
        """Processes of the platform."""
        return {name: pid_of(self.supervisor, name) for name in PARTS}

    def sent(self) -> float:
        """Letters that the courier handed to the bus, repetitions included."""
        return metric(self.settings, "courier", 'causeway_letters_sent_total{kind="assign"}')

    def left(self) -> float:
        """Letters that still wait."""
        return metric(self.settings, "courier", "causeway_mailbox_letters")


async def post(mailbox: Mailbox, devices: list[BenchDevice]) -> None:
    """Three letters for everybody."""
    wanted = [(device, number) for number in range(LETTERS) for device in devices]
    for start in range(0, len(wanted), POSTS_AT_ONCE):
        batch, now = wanted[start : start + POSTS_AT_ONCE], datetime.now(UTC)
        await asyncio.gather(*(mailbox.post(assignment(device.address, number), now) for device, number in batch))


async def power_cut(world: World) -> float:
    """Kill nats-server and wait until its successor listens.

    Returns:
        That moment.
    """
    bus, before = world.settings.bus, pid_of(world.supervisor, "nats-server")
    os.kill(before, signal.SIGKILL)
    await until(
        lambda: pid_of(world.supervisor, "nats-server") != before and listens(bus.host, bus.mqtt_port),
        "nats-server to be back",
    )
    return time.monotonic()


async def comeback(world: World, settle_s: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The power cut and the return.

    Args:
        world: where.
        settle_s: how long the devices are left alone afterwards, to see what the server's memory comes to.

    Returns:
        Figures, and what else is worth knowing.
    """
    devices = len(world.devices)
    sent_before = world.sent()
    say("power cut; nats-server starts again, and all devices return")
    begun = await power_cut(world)
    pids = world.pids()
    server = pids["nats-server"]
    empty = memory(server).rss_mb
    before, clients = {part: cpu_s(pid) for part, pid in pids.items()}, world.fleet.cpu_s()
    await world.fleet.ask(do="go")
    await world.fleet.until_in_sync(begun, SYNC_TIMEOUT_S)
    await until(lambda: not world.left(), "the courier to drop letters that devices hold", EMPTY_TIMEOUT_S)
    in_sync_s = time.monotonic() - begun
    used = {part: round(cpu_s(pid) - before[part], 2) for part, pid in pids.items()}
    used["devices"] = round(world.fleet.cpu_s() - clients, 2)
    peak = memory(server).rss_mb
    sent = world.sent() - sent_before
    stories = await world.fleet.stories()
    say(f"in sync after {in_sync_s:.1f} s; waiting until presence is written down")
    await quiet(pids)
    settled = memory(server).rss_mb
    await asyncio.sleep(settle_s)
    later = memory(server).rss_mb
    took = spread(stories, "in_sync")
    figures = {
        "devices": devices,
        "in_sync_s": round(in_sync_s, 2),
        "p99_s": took["p99"],
        "server_kb_per_device": round(1024 * (settled - empty) / devices, 1),
        "slowest_s": took["slowest"],
        "starved": sum(story.in_sync is None for story in stories),
        "connect_p99_s": spread(stories, "subscribed")["p99"],
        "hello_p99_s": spread(stories, "answered", "subscribed")["p99"],
        "sent_per_letter": round(sent / (LETTERS * devices), 3),
    }
    extra = {
        "cpu_s": used,
        "server_mb": {"empty": empty, "in_sync": peak, "settled": settled},
        "server_kb_per_device_later": {"after_s": settle_s, "kb": round(1024 * (later - empty) / devices, 1)},
        "collector": collector(world.settings.bus),
        "attempts_per_device": round(sum(story.attempts for story in stories) / devices, 3),
        "hellos_per_device": round(sum(story.hellos for story in stories) / devices, 3),
        "lost_connections": await world.fleet.problems(),
        "seconds": {"in_sync": took, "subscribed": spread(stories, "subscribed")},
    }
    return figures, extra


async def quiet(pids: dict[str, int]) -> None:
    """Wait until the platform has nothing more to do.

    Raises:
        BenchError: if that does not happen.
    """
    deadline, before = time.monotonic() + QUIET_TIMEOUT_S, sum(map(cpu_s, pids.values()))
    while True:
        await asyncio.sleep(QUIET_LOOK_S)
        now = sum(map(cpu_s, pids.values()))
        if now - before < QUIET_CPU:
            return
        if time.monotonic() > deadline:
            raise BenchError(f"the platform still works {QUIET_TIMEOUT_S:.0f} s after all devices were in sync")
        before = now


async def broadcast(world: World, bus: Bus, timestamp: int) -> float:
    """Tell all of them something.

    Returns:
        Seconds until the last one has heard it.
    """
    body = TrustAnnouncement(timestamp=timestamp, spread_s=0.0).write()
    begun = time.monotonic()
    await bus.nc.publish(broadcast_subject(FLEET, "trust"), body)
    while True:
        told = await world.fleet.ask(do="told", since=begun)
        if sum(part["count"] for part in told) == len(world.devices):
            return float(max(part["last"] for part in told) - begun)
        if time.monotonic() > begun + BROADCAST_TIMEOUT_S:
            raise BenchError(f"a broadcast did not reach all within {BROADCAST_TIMEOUT_S:.0f} s: {told}")
        await asyncio.sleep(POLL_S)


async def down(world: World, pace: Pace) -> list[float]:
    """Letters at a steady rate, each to another device.

    Returns:
        Seconds from before the signature until the device has it, per letter.
    """
    posted: dict[str, float] = {}
    posting: list[asyncio.Task[None]] = []
    step = max(1, len(world.devices) // max(1, round(pace.per_s * pace.seconds)))

    def one(number: int) -> None:
        device = world.devices[number * step % len(world.devices)]
        letter = assignment(device.address, LETTERS + number)
        posted[letter.letter_id] = time.monotonic()
        posting.append(asyncio.create_task(world.mailbox.post(letter, datetime.now(UTC))))

    count = await steadily(pace, one)
    await asyncio.gather(*posting)
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while True:
        parts = await world.fleet.ask(do="arrivals", ids=list(posted))
        arrived = {letter_id: at for part in parts for letter_id, at in part.items()}
        if len(arrived) == count:
            return [arrived[letter_id] - begun for letter_id, begun in posted.items()]
        if time.monotonic() > deadline:
            raise BenchError(f"{count - len(arrived)} of {count} letters did not arrive within {DOWN_TIMEOUT_S:.0f} s")
        await asyncio.sleep(POLL_S)


async def ours(size: Size, state: StateFolder, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole of it against our platform. Returns as `comeback`."""
    say(f"minting {size.devices} devices")
    devices = mint(state, size.devices)
    async with started(state, ()):
        await enrol(state, settings, devices)
    async with started(state, SERVICES) as supervisor, on_bus(state, settings, "ota") as bus:
        key = read_letter_key(state.service_key("ota"))
        mailbox = Mailbox(bus.js, "ota", settings.platform, key.signer, key.generation)
        say(f"{LETTERS * size.devices} letters into their mailboxes")
        await post(mailbox, devices)
        async with on_bus(state, settings, "operator") as operator:
            head = (await rpc.call(operator, "depot", "trust"))["head"]
        plan = Plan(
            host=settings.bus.host,
            port=settings.bus.mqtt_port,
            ca=str(state.ca / "ca.pem"),
            letters=LETTERS,
            trust=head,
            keys=[base64.b64encode(read_letter_key(state.service_key(s)).signer.public_key).decode() for s in SENDERS],
            at_once=size.at_once,
            people=[(d.address.fleet, d.address.device, d.client_id, d.jwt) for d in devices],
        )
        async with fleet(plan, state.logs) as herd:
            world = World(supervisor, state, settings, mailbox, devices, herd)
            figures, extra = await comeback(world, size.settle_s)
            async with on_bus(state, settings, "depot") as depot:
                told = [await broadcast(world, depot, head["timestamp"]) for _ in range(BROADCASTS)]
            say("letters down, one at a time")
            took = await down(world, size.down)
    figures["broadcast_s"] = round(median(told), 3)
    figures["down_p99_ms"] = round(1_000 * percentile(took, 99), 2)
    figures["down_p50_ms"] = round(1_000 * percentile(took, 50), 2)
    return figures, extra | {"broadcasts_s": [round(each, 3) for each in told], "letters_down": len(took)}


async def run(size: Size) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours, then the peer.

    Returns:
        The figures, and how they came about.
    """
    raise_files(size.devices)
    async with state_folder(tls=True) as (state, settings):
        figures, extra = await ours(size, state, settings)
        if size.peer:
            figures |= await peer_sessions.measure(state, size.devices, LETTERS)
    return figures, extra


def main() -> None:
    """Command line."""
    parser = arguments("reconnect", __doc__ or "")
    parser.add_argument("--devices", type=int, help="how many return (default: 10000, quick 500)")
    parser.add_argument("--at-once", type=int, default=0, help="connections made at a time, 0 for all (default: 0)")
    parser.add_argument("--settle", type=float, default=0.0, help="seconds of rest before one more look at memory")
    parser.add_argument("--no-peer", action="store_true", help="leave Mosquitto out")
    parser.add_argument(
        "--memory-mb",
        type=int,
        help=f"setting bus.memory_mb, 0 for none (default: {MEMORY_MB_PER_THOUSAND} for each 1000 devices, quick none)",
    )
    options = parser.parse_args()
    devices = options.devices or (500 if options.quick else 10_000)
    memory_mb = options.memory_mb
    if memory_mb is None:
        memory_mb = 0 if options.quick else devices * MEMORY_MB_PER_THOUSAND // 1_000
    os.environ["CAUSEWAY_BUS__MEMORY_MB"] = str(memory_mb)
    down_pace = Pace(devices, devices, 50.0, 3.0 if options.quick else 20.0)
    targets = (
        Target("in_sync_s", 60, at_least=False),
        Target("starved", 0, at_least=False),
        Target("server_kb_per_device", 60, at_least=False),
        Target("broadcast_s", 1, at_least=False),
        Target("down_p99_ms", 50, at_least=False),
    )
    parameters = {
        "devices": devices,
        "letters_each": LETTERS,
        "at_once": options.at_once,
        "memory_mb": memory_mb,
        "quick": options.quick,
        "tls": True,
    }
    work = run(Size(devices, options.at_once, down_pace, not options.no_peer, options.settle))
    conduct("reconnect", work, targets, parameters=parameters, as_json=options.json)


if __name__ == "__main__":
    main()
