"""Which device gets a task: a heap of candidates per class of request, so that many equal tasks place in O(log n) each.

Pure: a `Placer` is built from one snapshot of the devices and gives decisions with their reasons; nothing is sent here.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from services.kit.api.scheduler import Reason, Requires
from services.scheduler.scoring import Node, Worth, full, ineligible, worth

MAX_OTHERS = 16
"""Devices besides the chosen one whose reasons are kept."""
_MIN_REFUSED = 6
"""Of them, so many are kept for devices that were refused, if there are any."""
_LOOK = 64
"""Candidates that are looked at for the best others."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What makes two tasks equal for placement.

    Attributes:
        group: tasks submitted together; `max_per_device` counts among them.
    """

    fleet: str
    runner: str
    requires: Requires
    ram_mb: int
    group: str
    max_per_device: int | None = None

    @property
    def key(self) -> str:
        """Equal for tasks of one class."""
        parts = [self.fleet, self.runner, self.requires.model_dump_json(), str(self.ram_mb)]
        if self.max_per_device is not None:
            parts += [self.group, str(self.max_per_device)]
        return "\0".join(parts)


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision: the device, or None, and the reasons, the chosen device first."""

    device: str | None
    reasons: tuple[Reason, ...]


@dataclass(slots=True)
class _Pool:
    """Candidates of one class: (-score, running when scored, device)."""

    heap: list[tuple[float, int, str]]
    worths: dict[str, Worth]
    refused: list[Reason]
    held: Counter[str] = field(default_factory=Counter)


class Placer:
    """Places tasks on one snapshot of devices; what it places counts for what it places next."""

    def __init__(self, nodes: Iterable[Node], held: Mapping[str, Counter[str]] | None = None) -> None:
        """`held`: per group, how many tasks each device holds as `fleet/device`."""
        self._nodes: dict[tuple[str, str], Node] = {(n.view.fleet, n.device): n for n in nodes}
        self._held = held or {}
        self._pools: dict[str, _Pool] = {}

    def place(self, demand: Demand, avoid: Collection[str] = ()) -> Placement:
        """Choose the device with the best score; ties go to the one with fewer tasks, then by name.

        Args:
            demand: what the task needs.
            avoid: devices that had this task already; taken only if nobody else may have it.
        """
        pool = self._pool(demand)
        skipped: list[tuple[float, int, str]] = []
        chosen: tuple[float, int, str] | None = None
        while pool.heap:
            entry = self._best(demand, pool)
            if entry is None:
                break
            if entry[2] in avoid:
                skipped.append(entry)
                continue
            chosen = entry
            break
        if chosen is None and skipped:
            chosen = skipped.pop(0)
        for entry in skipped:
            heapq.heappush(pool.heap, entry)
        if chosen is None:
            return Placement(None, tuple(self._others(demand, pool, "")))
        reasons = self._reasons(demand, pool, chosen, again=chosen[2] in avoid)
        self._take(demand, pool, chosen)
        return Placement(chosen[2], reasons)

    def _best(self, demand: Demand, pool: _Pool) -> tuple[float, int, str] | None:
        """Pop the best entry whose score still holds; other classes may have given its device work meanwhile."""
        while pool.heap:
            entry = heapq.heappop(pool.heap)
            node = self._nodes[demand.fleet, entry[2]]
            why = self._occupied(demand, pool, node)
            if why is not None:
                pool.refused.append(Reason(device=node.device, why=why))
            elif entry[1] != node.running:
                heapq.heappush(pool.heap, self._entry(pool, node))
            else:
                return entry
        return None

    def _occupied(self, demand: Demand, pool: _Pool, node: Node) -> str | None:
        if (why := full(node)) is not None:
            return why
        held = pool.held[node.device]
        if demand.max_per_device is not None and held >= demand.max_per_device:
            return f"holds {held} of these tasks, at most {demand.max_per_device} per device"
        return None

    def _take(self, demand: Demand, pool: _Pool, chosen: tuple[float, int, str]) -> None:
        key = (demand.fleet, chosen[2])
        node = replace(self._nodes[key], running=self._nodes[key].running + 1)
        self._nodes[key] = node
        pool.held[node.device] += 1
        heapq.heappush(pool.heap, self._entry(pool, node))

    def _pool(self, demand: Demand) -> _Pool:
        pool = self._pools.get(demand.key)
        if pool is None:
            pool = self._pools[demand.key] = self._build(demand)
        return pool

    def _build(self, demand: Demand) -> _Pool:
        pool = _Pool([], {}, [])
        fleet = [node for (name, _), node in self._nodes.items() if name == demand.fleet]
        for node in fleet:
            why = ineligible(node, demand.runner, demand.requires, demand.ram_mb)
            if why is not None:
                pool.refused.append(Reason(device=node.device, why=why))
                continue
            pool.worths[node.device] = worth(node, demand.requires)
            pool.heap.append(self._entry(pool, node))
        known = {node.device for node in fleet}
        unknown = [name for name in demand.requires.devices or () if name not in known]
        pool.refused += [Reason(device=name, why="not enrolled") for name in unknown[:MAX_OTHERS]]
        # A pinned device that was refused says more than all those that were not asked for.
        chosen = set(demand.requires.devices or ())
        pool.refused.sort(key=lambda reason: (reason.device not in chosen, reason.device))
        if demand.max_per_device is not None:
            prefix = f"{demand.fleet}/"
            for address, count in self._held.get(demand.group, Counter()).items():
                pool.held[address.removeprefix(prefix)] += count
        heapq.heapify(pool.heap)
        return pool

    def _entry(self, pool: _Pool, node: Node) -> tuple[float, int, str]:
        return -pool.worths[node.device].score(node.running), node.running, node.device

    def _reasons(
        self, demand: Demand, pool: _Pool, chosen: tuple[float, int, str], *, again: bool
    ) -> tuple[Reason, ...]:
        score, running, device = chosen
        why = pool.worths[device].explain(running) + (", again: nobody else may have it" if again else "")
        first = Reason(device=device, score=round(-score, 6), why=why)
        return (first, *self._others(demand, pool, device))

    def _others(self, demand: Demand, pool: _Pool, but: str) -> list[Reason]:
        refused = pool.refused
        room = MAX_OTHERS - min(len(refused), _MIN_REFUSED)
        near = heapq.nsmallest(room, (entry for entry in pool.heap[:_LOOK] if entry[2] != but))
        scored = []
        for _, _, device in near:
            node = self._nodes[demand.fleet, device]
            factors = pool.worths[device]
            scored.append(
                Reason(device=device, score=round(factors.score(node.running), 6), why=factors.explain(node.running))
            )
        return scored + refused[: MAX_OTHERS - len(scored)]
