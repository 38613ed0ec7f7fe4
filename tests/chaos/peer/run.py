"""One run against the peer: the same plan, scaled; what it lost, doubled and reordered, counted the same way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.compare import Applied, Arrived, Posted, Sent, compare_down, compare_up
from tests.chaos.ledger import read_sent, read_taken
from tests.chaos.network import lay_out
from tests.chaos.peer.stage import Broker, PeerStage
from tests.chaos.plan import Fault
from tests.chaos.processes import ChaosError
from tests.chaos.stage import Load
from tests.chaos.storm import Storm
from tests.support.netns import Net

QUIET_S = 20.0
"""Longer than paho's longest pause between two attempts: whoever says nothing for so long has nothing to say."""
POLL_S = 1.0


async def run_peer(
    root: Path,
    load: Load,
    plan: list[Fault],
    seed: int,
    settle_s: float,
    broker: Broker,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The part of the report that is about this peer."""
    with Net() as net:
        host, sites = lay_out(net, load.sites)
        stage = PeerStage(root, load, host, sites, broker)
        try:
            await stage.start()
            say(f"{broker.name}: {load.up} letters up and {load.down} down begin, {len(plan)} faults")
            stage.begin()
            began = time.monotonic()
            storm = Storm(plan, seed, lambda _: None)
            await storm.blow(stage.hit)
            if storm.errors:
                raise ChaosError(f"carry out the plan on the peer: {storm.errors[:3]}")
            await asyncio.sleep(max(0.0, load.duration_s - (time.monotonic() - began)))
            mended = time.monotonic()
            await _settle(stage, settle_s)
            settled = time.monotonic() - mended
        finally:
            await stage.crew.close()
        return _report(stage, broker) | {
            "faults": len(plan),
            "duration_s": round(load.duration_s, 1),
            "waited_after_last_fault_s": round(settled, 1),
            "ended_by_themselves": dict(stage.crew.own_ends),
        }


async def _settle(stage: PeerStage, limit_s: float) -> None:
    """Until all is there, or nothing has moved for a while, or the limit has passed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    last, since = await asyncio.to_thread(stage.counts), loop.time()
    while loop.time() < deadline:
        await asyncio.sleep(POLL_S)
        seen = await asyncio.to_thread(stage.counts)
        if seen != last:
            last, since = seen, loop.time()
        elif loop.time() - since > QUIET_S:
            return
        if seen[0] == seen[1] == stage.load.up and seen[2] == seen[3] == stage.load.down:
            return


def _report(stage: PeerStage, broker: Broker) -> dict[str, Any]:
    sent: list[Sent] = []
    applied: list[Applied] = []
    doubtful: set[str] = set()
    for name in stage.load.names:
        path = stage.root / f"{name}.db"
        sure = read_sent(path, in_doubt=False)
        sent += [Sent(e.device, e.lane, e.number, e.letter) for e in sure]
        doubtful |= {e.letter for e in read_sent(path)} - {e.letter for e in sure}
        applied += [
            Applied(r.entry.device, r.entry.number, r.entry.letter, str(n)) for n, r in enumerate(read_taken(path))
        ]
    taken = [r.entry for r in read_taken(stage.root / "consumer.db")]
    arrived = [Arrived(e.device, e.lane, e.number, e.letter) for e in taken if e.letter not in doubtful]
    poster = stage.root / "poster.db"
    posted = [Posted(e.device, e.number, e.letter) for e in read_sent(poster, in_doubt=False)]
    doubtful |= {e.letter for e in read_sent(poster)} - {p.letter for p in posted}
    up = compare_up(sent, arrived)
    down = compare_down(posted, [a for a in applied if a.letter not in doubtful])
    return {
        "lost": up.lost + down.lost,
        "twice": up.applied_twice + down.applied_twice,
        "out_of_order": up.out_of_order,
        "lost_up": up.lost,
        "lost_down": down.lost,
        "twice_up": up.applied_twice,
        "twice_down": down.applied_twice,
        "down_overtaken": down.down_overtaken,
        "letters_up": len(sent),
        "letters_down": len(posted),
        "in_doubt_not_counted": len(doubtful),
        "broker": list(broker.lines),
        "clients": "paho-mqtt, clean_session=False, QoS 1, acknowledged after the receiver's commit, unbounded queue",
    }
