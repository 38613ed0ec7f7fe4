"""Carries out what placement and leases decide: first the record, then the letter, so that a crash loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog
from nats.errors import Error as NatsError
from prometheus_client import Counter, Histogram
from pydantic import BaseModel
from ulid import ULID

from schemas.envelope import MAX_LETTER_BYTES
from schemas.errors import MessageError
from schemas.ids import Address
from services.kit.api.scheduler import SubmitRequest, TaskListRequest, TaskRequest
from services.kit.errors import NotFoundError, PlatformError, RefusedError, UnreachableError
from services.kit.intake import Arrival
from services.kit.mailbox import Draft, Mailbox
from services.kit.service import Service, utc_now
from services.scheduler.answers import fit
from services.scheduler.leases import (
    GRACE_S,
    TaskRecord,
    Verdict,
    apply_result,
    expire,
    task_data,
)
from services.scheduler.nodes import Fleet, nodes
from services.scheduler.placement import Placer
from services.scheduler.planning import plan
from services.scheduler.store import Entry, TaskStore

log = structlog.get_logger()

T = TypeVar("T")

PLACEMENT = Histogram("causeway_placement_seconds", "Time to place the tasks that wait, all of one turn.")
STALE = Counter("causeway_stale_results_total", "Results of an older term: counted, not applied.")
EXPIRED = Counter("causeway_leases_expired_total", "Leases whose device said nothing by the deadline.")

MAX_QUEUED = 20_000
"""Tasks that wait for a device; beyond it a submission is refused."""
MAX_TASK_BYTES = MAX_LETTER_BYTES * 3 // 4 - 2_048
"""Of a task's data, so that its letter fits in base64 with its frame."""
_PIPELINE = 256
"""Writes in flight at a time."""


class TaskDone(BaseModel):
    """Event `task-done`: a task is over, well or not."""

    task: str
    fleet: str
    state: str
    device: str | None
    term: int
    reason: str | None = None


class Dispatcher:
    """The scheduler's shell. Its lock orders the changes: each decision stands on what the one before has left."""

    def __init__(self, service: Service, store: TaskStore, mailbox: Mailbox, fleet: Fleet) -> None:
        self._service = service
        self._store = store
        self._mailbox = mailbox
        self._fleet = fleet
        self._lock = asyncio.Lock()
        self._unposted: dict[str, None] = {}
        self._unannounced: dict[str, None] = {}
        self._uncertain: dict[str, None] = {}
        self._woken = asyncio.Event()
        self._expire_from = utc_now() + timedelta(seconds=GRACE_S)

    async def start(self) -> None:
        """Post the letters of leased tasks again: a crash may have come between a record and its letter."""
        self._unposted = {entry.record.task: None for entry in self._store.in_state("leased")}
        await self._post_all()

    async def submit(self, request: SubmitRequest) -> list[dict[str, Any]]:
        """Verb `submit`.

        Raises:
            RefusedError: if the letter would be too large, or too many tasks wait already.
        """
        now = utc_now()
        self._check(request, now)
        group = str(ULID())
        records = [
            TaskRecord(task=str(ULID()), group=group, request=request, created=now) for _ in range(request.count)
        ]
        try:
            async with self._lock:
                await self._store.create(records)
        except (NatsError, TimeoutError) as error:
            self._uncertain |= {record.task: None for record in records}
            raise UnreachableError(
                f"submit {request.count} tasks: the bus did not acknowledge all of them ({error!r}); "
                "some may run, see `causeway task list`"
            ) from error
        await self.place()
        entries = (self._store.get(record.task) for record in records)
        return fit(entry.record.view() for entry in entries if entry is not None)

    async def list_tasks(self, request: TaskListRequest) -> list[dict[str, Any]]:
        """Verb `list`."""
        return fit(record.view() for record in self._store.newest(request.fleet, request.limit))

    async def show(self, request: TaskRequest) -> dict[str, Any]:
        """Verb `show`.

        Raises:
            NotFoundError: if there is no such task.
        """
        entry = self._store.get(request.task)
        if entry is None:
            raise NotFoundError(f"show task {request.task}: there is none; see `causeway task list`")
        return entry.record.view().model_dump(mode="json")

    async def on_result(self, arrival: Arrival) -> None:
        """A result from IN, perhaps for the second time.

        Raises:
            MessageError: if it answers no lease of its sender; it goes to REJECTS.
        """
        result, letter = arrival.letter.data, arrival.letter.id
        async with self._lock:
            while True:
                entry = self._store.get(result.task)
                if entry is None:
                    raise MessageError(
                        f"result of {arrival.address} for task {result.task}, which is not known", reason="unknown_task"
                    )
                ruling = apply_result(entry.record, arrival.address, letter, result)
                if ruling.verdict is Verdict.REPEATED:
                    break
                if await self._change(entry, ruling.record):
                    break
        if ruling.verdict is Verdict.STALE:
            STALE.inc()
            log.info("result.stale", task=result.task, term=result.term, device=str(arrival.address))
        else:
            await self._tell(ruling.record)
            self._woken.set()

    async def tick(self) -> None:
        """Once per turn: repeat what the bus did not take, end leases that are over, place what waits."""
        await self._post_all()
        for task in list(self._uncertain):
            await self._store.reload(task)
            del self._uncertain[task]
        for task in list(self._unannounced):
            del self._unannounced[task]
            entry = self._store.get(task)
            if entry is not None:
                await self._tell(entry.record)
        await self._expire(utc_now())
        await self.place()

    async def prune(self) -> None:
        """Now and then: forget the oldest tasks that are over."""
        async with self._lock:
            await self._store.prune(utc_now())

    async def follow(self) -> None:
        """Place again as soon as a result has made room."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self.place()

    async def place(self) -> None:
        """Give queued tasks to devices, as far as there are any that may have them."""
        if not self._store.count("queued"):
            return
        try:
            views = await self._fleet.views()
        except PlatformError as error:
            log.warning("placement.postponed", error=str(error), queued=self._store.count("queued"))
            return
        try:
            async with self._lock:
                with PLACEMENT.time():
                    placer = Placer(nodes(views, self._store), self._store.held)
                    entries = {entry.record.task: entry for entry in self._store.in_state("queued")}
                    queued = [entry.record for entry in entries.values()]
                    changes = plan(queued, placer, utc_now(), new_letter=lambda: str(ULID()))
                for batch in _batches(changes):
                    await asyncio.gather(*[self._change(entries[record.task], record) for record in batch])
        except (NatsError, TimeoutError) as error:
            log.warning("placement.postponed", error=repr(error), queued=self._store.count("queued"))
            return
        await self._post_all()
        for record in changes:
            await self._tell(record)

    async def _change(self, entry: Entry, record: TaskRecord) -> bool:
        """Store a change; a lease, be it ours or the winner's of a lost race, has a letter to be posted."""
        changed = await self._store.change(entry, record)
        now = changed or self._store.get(record.task)
        if now is not None and now.record.lease is not None and now.record.lease != entry.record.lease:
            self._unposted[record.task] = None
        return changed is not None

    async def _expire(self, now: datetime) -> None:
        # After a start, results that came meanwhile wait in IN and are read first.
        if now < self._expire_from:
            return
        async with self._lock:
            for entry in self._store.in_state("leased"):
                ended = expire(entry.record, now)
                if ended is None or not await self._change(entry, ended):
                    continue
                EXPIRED.inc()
                log.info("lease.expired", task=ended.task, term=ended.term, next=ended.state)
                await self._tell(ended)

    async def _post_all(self) -> None:
        waiting = list(self._unposted)
        self._unposted.clear()
        for batch in _batches(waiting):
            await asyncio.gather(*[self._post(task) for task in batch])

    async def _post(self, task: str) -> None:
        entry, now = self._store.get(task), utc_now()
        lease = entry.record.lease if entry is not None else None
        if entry is None or lease is None or lease.deadline <= now:
            return
        draft = Draft(
            kind="task",
            address=Address(entry.record.request.fleet, lease.device),
            data=entry.record.letter(lease),
            letter_id=lease.letter,
            slot=lease.letter,
            revision=entry.revision,
            expires=lease.deadline,
        )
        try:
            await self._mailbox.post(draft, now)
        except (NatsError, TimeoutError) as error:
            log.warning("letter.postponed", task=task, error=repr(error))
            self._unposted[task] = None

    async def _tell(self, record: TaskRecord) -> None:
        if record.state not in {"done", "failed"}:
            return
        device = record.attempts[-1].device if record.attempts else None
        event = TaskDone(
            task=record.task,
            fleet=record.request.fleet,
            state=record.state,
            device=device,
            term=record.term,
            reason=record.reason,
        )
        try:
            await self._service.announce("task-done", event)
        except (NatsError, TimeoutError) as error:
            log.warning("event.postponed", task=record.task, error=repr(error))
            self._unannounced[record.task] = None

    def _check(self, request: SubmitRequest, now: datetime) -> None:
        probe = task_data(
            str(ULID()), request.max_terms, request.kind, request.runner, request.inputs, request.limits, now
        )
        size = len(probe.write())
        if size > MAX_TASK_BYTES:
            raise RefusedError(
                f"submit task: inputs make {size} bytes, a letter carries {MAX_TASK_BYTES}; send large data by digest"
            )
        waiting = self._store.count("queued")
        if waiting + request.count > MAX_QUEUED:
            raise RefusedError(
                f"submit {request.count} tasks: {waiting} wait already, at most {MAX_QUEUED} may; submit fewer or later"
            )


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _PIPELINE):
        yield items[start : start + _PIPELINE]
