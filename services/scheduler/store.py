"""The task records: bucket `tasks` behind compare-and-set, and the indexes that placement needs, folded from it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue
from prometheus_client import Gauge

from schemas.ids import Address
from services.kit.bus import Bus
from services.scheduler.leases import TaskRecord
from services.scheduler.tracks import Tracks

log = structlog.get_logger()

TASKS = Gauge("causeway_tasks", "Tasks that are kept, by state.", ["state"])
STATES = ("queued", "leased", "done", "failed")

MAX_KEPT = 20_000
"""Records; beyond it the oldest that are over go. IN forgets after a week, so no letter can ask for them."""
KEEP_S = 7 * 86_400.0
_PIPELINE = 128


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as the bucket holds it."""

    record: TaskRecord
    revision: int


class TaskStore:
    """A copy in memory of the bucket. This service is its only writer; a second instance shows as a lost race."""

    def __init__(self, kv: KeyValue, js: JetStreamContext) -> None:
        self._kv = kv
        self._js = js
        self._entries: dict[str, Entry] = {}
        self._states: dict[str, dict[str, None]] = {state: {} for state in STATES}
        self.running: Counter[Address] = Counter()
        """Leases per device."""
        self.held: dict[str, Counter[str]] = {}
        """Leases per group of tasks and device (`fleet/device`)."""
        self.tracks = Tracks()

    @classmethod
    async def open(cls, bus: Bus) -> TaskStore:
        """Load the bucket.

        Raises:
            UnreachableError: if the bucket is not there.
        """
        kv = await bus.bucket("tasks")
        store = cls(kv, bus.js)
        watcher = await kv.watch(">")
        try:
            async for entry in watcher:
                if entry is None:
                    break
                if entry.operation is None and entry.value:
                    store._index(Entry(TaskRecord.model_validate_json(entry.value), entry.revision or 0))
        finally:
            await watcher.stop()  # type: ignore[no-untyped-call]
        return store

    def get(self, task: str) -> Entry | None:
        """One record."""
        return self._entries.get(task)

    def in_state(self, state: str) -> list[Entry]:
        """Records of one state, in the order in which they came to it."""
        return [self._entries[task] for task in self._states[state]]

    def count(self, state: str) -> int:
        """How many there are."""
        return len(self._states[state])

    def newest(self, fleet: str | None, limit: int) -> list[TaskRecord]:
        """Records of a fleet, newest first."""
        found: list[TaskRecord] = []
        for task in sorted(self._entries, reverse=True):
            record = self._entries[task].record
            if fleet is None or record.request.fleet == fleet:
                found.append(record)
                if len(found) == limit:
                    break
        return found

    async def create(self, records: Sequence[TaskRecord]) -> list[Entry]:
        """Store new records, many at a time; durable when this returns.

        Raises:
            nats.errors.Error: if JetStream does not acknowledge; those stored already stay.
        """
        entries: list[Entry] = []
        for start in range(0, len(records), _PIPELINE):
            chunk = records[start : start + _PIPELINE]
            entries += await asyncio.gather(*(self._create(record) for record in chunk))
        return entries

    async def change(self, entry: Entry, record: TaskRecord) -> Entry | None:
        """Replace a record if nobody has changed it since `entry`.

        Returns:
            The new entry; None if the race was lost, the memory then holds what the winner wrote.

        Raises:
            nats.errors.Error: if JetStream does not acknowledge; whether it was stored shows at the next attempt.
        """
        try:
            revision = await self._kv.update(record.task, _dump(record), last=entry.revision)
        except KeyWrongLastSequenceError:
            log.warning("task.race_lost", task=record.task, revision=entry.revision)
            await self.reload(record.task)
            return None
        return self._index(Entry(record, revision))

    async def prune(self, now: datetime) -> None:
        """Forget the oldest tasks that are over, beyond the bounds."""
        surplus = len(self._entries) - MAX_KEPT
        horizon = now - timedelta(seconds=KEEP_S)
        over = sorted([*self._states["done"], *self._states["failed"]])
        old = [task for task in over if self._entries[task].record.created < horizon]
        for task in over[: max(surplus, len(old))]:
            # A purge of the subject leaves no tombstone, of which a bucket would collect one per task for ever.
            await self._js.purge_stream("KV_tasks", subject=f"$KV.tasks.{task}")
            self._forget(task)

    async def _create(self, record: TaskRecord) -> Entry:
        revision = await self._kv.create(record.task, _dump(record))
        return self._index(Entry(record, revision))

    async def reload(self, task: str) -> None:
        """Take over what the bucket holds of a task."""
        try:
            stored = await self._kv.get(task)
        except KeyNotFoundError:
            self._forget(task)
            return
        self._index(Entry(TaskRecord.model_validate_json(stored.value or b""), stored.revision or 0))

    def _index(self, entry: Entry) -> Entry:
        task = entry.record.task
        old = self._entries.get(task)
        self._count(old.record if old else None, -1)
        self._entries[task] = entry
        self._count(entry.record, 1)
        self.tracks.change(old.record if old else None, entry.record)
        self._measure()
        return entry

    def _forget(self, task: str) -> None:
        # What a device has shown with a forgotten task still counts until the next start.
        entry = self._entries.pop(task, None)
        self._count(entry.record if entry else None, -1)
        self._measure()

    def _count(self, record: TaskRecord | None, sign: int) -> None:
        if record is None:
            return
        if sign > 0:
            self._states[record.state][record.task] = None
        else:
            self._states[record.state].pop(record.task, None)
        lease = record.lease
        if lease is None:
            return
        address = Address(record.request.fleet, lease.device)
        self.running[address] += sign
        group = self.held.setdefault(record.group, Counter())
        group[str(address)] += sign
        if group[str(address)] <= 0:
            del group[str(address)]
        if not group:
            del self.held[record.group]

    def _measure(self) -> None:
        for state in STATES:
            TASKS.labels(state).set(len(self._states[state]))


def _dump(record: TaskRecord) -> bytes:
    return record.model_dump_json(exclude_defaults=True).encode()
