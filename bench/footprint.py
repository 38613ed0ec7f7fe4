"""Memory of an idle edge agent and its time to the first heartbeat, beside Flower's idle SuperNode.

The agent is enrolled with a token and connects over TLS, as a device would; the platform runs on the same machine. A
proportional set size divides pages of shared libraries among the processes that map them, here also those of the
platform; on a device where nothing else is Python it lies closer to the resident size, which divides nothing. Flower's
figures are the sum over the processes that `flower-supernode` consists of.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

from nats.aio.msg import Msg

from bench.platform import FLEET, started, state_folder, watching
from bench.processes import Memory, free_port, listens, memory, running, until
from bench.report import BenchError, Target, arguments, conduct, say
from schemas.ids import Address
from schemas.registry import Token
from schemas.topics import Channel, Topic
from services.kit import rpc
from services.kit.api.registry import TokenRequest
from services.kit.bus import on_bus
from services.kit.folder import StateFolder, write_private
from services.kit.permissions import OPERATOR
from services.kit.settings import Settings

DEVICE = Address(FLEET, "d0000")
SERVICES = ("registry", "courier", "depot")
ENROL_TIMEOUT_S = 60.0
START_TIMEOUT_S = 30.0
WORKER_IDLE_S = 30.0
"""As devices have it by default; less where the bench waits for less than twice that."""
FLOWER_TIMEOUT_S = 60.0


async def enrol(state: StateFolder, settings: Settings, folder: Path, worker_idle_s: float) -> Path:
    """Take a token from the registry and run `causeway-edge enrol` with it.

    Args:
        state: the platform's folder.
        settings: of the platform.
        folder: the device's, to be made.
        worker_idle_s: when the agent ends its worker process; an idle agent has none.

    Returns:
        The device's settings file.
    """
    config = folder / "edge.toml"
    write_private(config, f'state = "state"\nworker_idle_s = {worker_idle_s}\n'.encode())
    async with on_bus(state, settings, OPERATOR) as bus:
        request = TokenRequest(fleet=DEVICE.fleet, device=DEVICE.device)
        token = Token.model_validate(await rpc.call(bus, "registry", "token", request))
    path = folder / "device.token"
    write_private(path, token.write())
    log = folder / "enrol.log"
    async with running(_edge(config, "enrol", str(path)), log) as process:
        await until(lambda: process.returncode is not None, "the device to enrol", ENROL_TIMEOUT_S)
    if process.returncode != 0:
        raise BenchError(f"the device did not enrol (exit {process.returncode}):\n{log.read_text()[-2000:]}")
    return config


@asynccontextmanager
async def agent(state: StateFolder, settings: Settings, config: Path) -> AsyncIterator[tuple[int, float]]:
    """A running agent: its process id, and the seconds from its start until its first heartbeat was on the bus."""
    heard = asyncio.get_running_loop().create_future()

    async def hear(_: Msg) -> None:
        if not heard.done():
            heard.set_result(time.monotonic())

    log = config.parent / "agent.log"
    async with watching(state, settings) as client:
        await client.subscribe(Topic(DEVICE, Channel.STATE, "heartbeat").subject, cb=hear)
        await client.flush()
        begun = time.monotonic()
        async with running(_edge(config, "run"), log) as process:
            try:
                await until(heard.done, "the first heartbeat", START_TIMEOUT_S, process)
            except BenchError as error:
                raise BenchError(f"{error}; the agent's log:\n{log.read_text()[-2000:]}") from error
            yield process.pid, heard.result() - begun
            if process.returncode is not None:
                raise BenchError(f"the idle agent ended with {process.returncode}:\n{log.read_text()[-2000:]}")


async def ours(idle_s: float, starts: int) -> dict[str, Any]:
    """Enrol, start some times, then leave the last agent alone and look."""
    async with state_folder(tls=True) as (state, settings), started(state, SERVICES):
        config = await enrol(state, settings, state.root.parent / "device", min(WORKER_IDLE_S, idle_s / 2))
        took: list[float] = []
        for _ in range(starts - 1):
            async with agent(state, settings, config) as (_, start_s):
                took.append(start_s)
        async with agent(state, settings, config) as (pid, start_s):
            took.append(start_s)
            say(f"agent: first heartbeats after {', '.join(f'{t:.2f}' for t in took)} s; now idle for {idle_s:.0f} s")
            await asyncio.sleep(idle_s)
            used = memory(pid)
    return {
        "agent_pss_mb": used.pss_mb,
        "agent_rss_mb": used.rss_mb,
        "agent_private_mb": used.private_mb,
        "agent_processes": used.processes,
        "start_s": round(median(took), 3),
        "start_s_each": [round(t, 3) for t in took],
    }


async def flower(peers: Path, idle_s: float, folder: Path) -> Memory:
    """An idle SuperNode that is registered with a SuperLink, both on the loopback."""
    programs = (peers / "bin").absolute()
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }
    link_port, node_port = free_port(), free_port()
    link = [str(programs / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(link_port)]
    node = [str(programs / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{link_port}"]
    node += ["--host", "127.0.0.1", "--port", str(node_port)]
    link_log, log = folder / "superlink.log", folder / "supernode.log"
    async with running(link, link_log, environment=environment) as superlink:
        await until(lambda: listens("127.0.0.1", link_port), "flower-superlink to listen", FLOWER_TIMEOUT_S, superlink)
        async with running(node, log, environment=environment) as supernode:
            registered = "SuperNode ID"
            await until(
                lambda: registered in log.read_text(), "flower-supernode to register", FLOWER_TIMEOUT_S, supernode
            )
            await asyncio.sleep(idle_s)
            if supernode.returncode is not None:
                raise BenchError(f"flower-supernode ended with {supernode.returncode}:\n{log.read_text()[-2000:]}")
            return memory(supernode.pid)


async def run(idle_s: float, starts: int, peers: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both, one after the other.

    Returns:
        The figures, and why any is missing.
    """
    figures = await ours(idle_s, starts)
    figures |= dict.fromkeys(("flower_pss_mb", "flower_rss_mb", "flower_private_mb", "flower_processes"))
    if not (peers / "bin" / "flower-supernode").exists():
        return figures, {
            "notes": {"flower": f"not measured: {peers} has no flower-supernode; `make peers` installs it"}
        }
    async with state_folder(tls=False) as (state, _):
        used = await flower(peers, idle_s, state.root)
    figures |= {
        "flower_pss_mb": used.pss_mb,
        "flower_rss_mb": used.rss_mb,
        "flower_private_mb": used.private_mb,
        "flower_processes": used.processes,
    }
    return figures, {"notes": {}}


def _edge(config: Path, *command: str) -> list[str]:
    return [sys.executable, "-m", "edge_runtime", *command, "--config", str(config)]


def main() -> None:
    """Command line."""
    parser = arguments("footprint", __doc__ or "")
    parser.add_argument("--idle", type=float, help="seconds to wait before looking (default: 60, quick 10)")
    options = parser.parse_args()
    idle_s = options.idle or (10.0 if options.quick else 60.0)
    starts = 2 if options.quick else 5
    targets = (Target("agent_pss_mb", 50, at_least=False), Target("start_s", 1.5, at_least=False))
    parameters = {"idle_s": idle_s, "starts": starts, "quick": options.quick, "tls": True}
    work = run(idle_s, starts, options.peers)
    conduct("footprint", work, targets, parameters=parameters, as_json=options.json)


if __name__ == "__main__":
    main()
