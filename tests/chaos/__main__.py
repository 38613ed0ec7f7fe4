"""`python -m tests.chaos`: kill, cut and slow everything while letters travel, and count; exit 1 if a promise broke."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.kit import logs
from tests.chaos.network import enter_own_network
from tests.chaos.peer.run import run_peer
from tests.chaos.peer.stage import SHIPPED, TUNED
from tests.chaos.plan import Fault, make_plan, scaled
from tests.chaos.processes import ChaosError
from tests.chaos.run import Limits, run
from tests.chaos.stage import Load

QUICK = {
    "minutes": 1.0,
    "devices": 10,
    "sites": 5,
    "up": 6_000,
    "down": 1_200,
    "faults": 14,
    "settle": 60.0,
    "peer_minutes": 0.3,
}
FULL = {
    "minutes": 9.0,
    "devices": 50,
    "sites": 10,
    "up": 100_000,
    "down": 20_000,
    "faults": 72,
    "settle": 240.0,
    "peer_minutes": 2.0,
}
Say = Callable[[str], None]
PROMISES = (
    "lost",
    "applied_twice",
    "out_of_order",
    "drops_not_in_ledger",
    "denied_but_arrived",
    "agents_ended_by_themselves",
)


def parse() -> argparse.Namespace:
    """Arguments; what is not given is as in the quick or the full form."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 minutes in all")
    parser.add_argument("--seed", type=int, help="of the plan and of losses; random and printed if absent")
    parser.add_argument("--minutes", type=float, help="of load and faults")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--sites", type=int, help="places with a link of their own, where devices share a process")
    parser.add_argument("--up", type=int, help="letters up, of all devices together")
    parser.add_argument("--down", type=int, help="letters down, to all devices together")
    parser.add_argument("--faults", type=int)
    parser.add_argument("--settle", type=float, help="seconds that settling may take")
    parser.add_argument("--peer-minutes", type=float, help="of load and faults on each peer; 0 leaves the peers out")
    parser.add_argument("--report", type=Path, default=Path("chaos-report.json"))
    parser.add_argument("--folder", type=Path, help="work here and leave everything for a look")
    parser.add_argument("--plan", action="store_true", help="print the plan of the seed and end")
    arguments = parser.parse_args()
    for name, value in (QUICK if arguments.quick else FULL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(10**6)
    arguments.sites = min(arguments.sites, arguments.devices)
    return arguments


def main() -> int:
    """Run it."""
    arguments = parse()
    duration_s = arguments.minutes * 60
    plan = make_plan(arguments.seed, duration_s, arguments.sites, arguments.faults)
    print(f"seed {arguments.seed}: {len(plan)} faults in {duration_s:.0f} s", flush=True)
    if arguments.plan:
        print("\n".join(map(str, plan)))
        return 0
    logs.configure("chaos", "ERROR")
    root = (arguments.folder or Path(tempfile.mkdtemp(prefix="causeway-chaos-"))).absolute()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f}] {text}", flush=True)

    try:
        enter_own_network()
        report = {"seed": arguments.seed} | asyncio.run(both(root, arguments, plan, say))
    except ChaosError as error:
        print(f"chaos: {error}\nfiles are in {root}", file=sys.stderr)
        return 2
    report["duration_s"] = round(time.monotonic() - began, 1)
    arguments.report.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    broken = [name for name in PROMISES if report[name]] + [report["unsettled"]] * bool(report["unsettled"])
    if broken:
        print(f"broken: {', '.join(broken)}; files are in {root}", file=sys.stderr)
        return 1
    if arguments.folder is None:
        shutil.rmtree(root)
    return 0


async def both(root: Path, arguments: argparse.Namespace, plan: list[Fault], say: Say) -> dict[str, Any]:
    """The platform, then its peers with the same plan in less time."""
    load = Load(arguments.devices, arguments.sites, arguments.up, arguments.down, arguments.minutes * 60)
    report = await run(root / "causeway", load, plan, arguments.seed, Limits(arguments.settle), say)
    if arguments.peer_minutes > 0:
        factor = arguments.peer_minutes / arguments.minutes
        faster = replace(load, duration_s=load.duration_s * factor)
        for broker in (SHIPPED,) if arguments.quick else (SHIPPED, TUNED):
            report[broker.name] = await run_peer(
                root / broker.name, faster, scaled(plan, factor), arguments.seed, arguments.settle, broker, say
            )
    return report


if __name__ == "__main__":
    sys.exit(main())
