"""What reaches the aggregator: requests of operators and update letters."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

import structlog
from pydantic import BaseModel

from edge_runtime.learning.catalogue import TrainingError, build_estimator
from edge_runtime.learning.vector import count, shapes_of
from schemas.aggregator import MAX_INLINE_BYTES, Artifact, Update
from schemas.errors import MessageError
from services.aggregator import metrics
from services.aggregator.fold import JobFold
from services.aggregator.rounds import absent, candidates
from services.aggregator.runner import JobRunner, Outside
from services.aggregator.store import JobRecord, JobStore, Ledger, record_of
from services.aggregator.updates import WIRE_BYTES
from services.kit import rpc
from services.kit.api.aggregator import JobName, JobRequest
from services.kit.api.depot import RegisterRequest
from services.kit.artifacts import ArtifactStore
from services.kit.devices import DeviceBook
from services.kit.errors import NotFoundError, RefusedError
from services.kit.intake import Arrival
from services.kit.mailbox import Draft, Mailbox
from services.kit.service import Service, utc_now

log = structlog.get_logger()

TICK_S = 0.25
RETRY_S = 1.0


class Platform:
    """The rest of the platform, as a job sees it."""

    def __init__(self, service: Service, book: DeviceBook, artifacts: ArtifactStore) -> None:
        self._service = service
        self._book = book
        self._artifacts = artifacts
        self._mailbox: Mailbox = service.mailbox()

    def candidates(self, job: JobFold) -> list[str]:
        """Devices that may be invited now."""
        return candidates(self._book.all(), job.request)

    def away(self, job: JobFold) -> frozenset[str]:
        """Devices that cannot answer now."""
        return absent(self._book.all(), job.request.fleet)

    async def post(self, draft: Draft, now: datetime) -> None:
        """Put a letter into a mailbox."""
        await self._mailbox.post(draft, now)

    async def publish(self, data: bytes) -> Artifact:
        """Store an artifact and have the depot cut it."""
        sha256 = await self._artifacts.put(data)
        answer = await rpc.call(self._service.bus, "depot", "register", RegisterRequest(sha256=sha256))
        return Artifact.model_validate(answer)

    async def announce(self, event: str, data: BaseModel) -> None:
        """Publish a fact."""
        await self._service.announce(event, data)


class Aggregator:
    """Every job of the platform, and the verbs of `services.kit.api.aggregator`."""

    def __init__(self, ledger: Ledger, store: JobStore, outside: Outside) -> None:
        self._ledger = ledger
        self._store = store
        self._outside = outside
        self._runners: dict[str, JobRunner] = {}
        self._wake = asyncio.Event()

    async def load(self) -> None:
        """Take over every job that is stored."""
        for name, (record, revision) in (await self._store.all()).items():
            self._runners[name] = self._runner(record, revision)
            if record.state != "done":
                await self._runners[name].load()
        log.info("jobs.loaded", jobs=len(self._runners))

    async def forget(self) -> None:
        """After a reconnect: the server may have lost its newest entries, so fold every ledger again."""
        for runner in self._runners.values():
            await runner.reload()
        self._wake.set()

    async def run(self) -> None:
        """Drive the jobs until cancelled; a step that fails is tried again after a second."""
        while True:
            for runner in list(self._runners.values()):
                if not runner.is_over and time.monotonic() >= runner.retry_at:
                    await self._step(runner)
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def on_update(self, arrival: Arrival) -> None:
        """Give an update letter its one effect.

        Raises:
            MessageError: `unknown_job` or `wrong_fleet`; the letter is rejected.
        """
        update: Update = arrival.letter.data
        runner = self._runners.get(update.job)
        if runner is None:
            raise MessageError(f"update of {arrival.address} for job {update.job}: unknown", reason="unknown_job")
        if runner.view.fleet != arrival.address.fleet:
            raise MessageError(
                f"update of {arrival.address} for job {update.job} of fleet {runner.view.fleet}", reason="wrong_fleet"
            )
        outcome = await runner.take(arrival.address.device, arrival.letter.id, update)
        metrics.UPDATES.labels(outcome).inc()
        if outcome == "accepted" and "train_s" in update.metrics:
            metrics.DEVICE_TRAINING_TIME.observe(max(0.0, update.metrics["train_s"]))
        if outcome != "accepted":
            log.info("update.not_counted", job=update.job, device=str(arrival.address), outcome=outcome)
        self._wake.set()

    async def create(self, request: JobRequest) -> dict[str, Any]:
        """Define a job.

        Raises:
            RefusedError: if its name is taken, its model cannot be built or does not fit into a letter.
        """
        try:
            estimator = build_estimator(request.estimator, request.parameters, seed=request.seed)
        except TrainingError as error:
            raise RefusedError(f"create job {request.job}: {error}") from error
        length = count(shapes_of(estimator.get_weights())) * WIRE_BYTES
        if length > MAX_INLINE_BYTES:
            raise RefusedError(
                f"create job {request.job}: an update of this model has {length} bytes, a letter carries "
                f"{MAX_INLINE_BYTES}; choose a smaller model"
            )
        record = record_of(JobFold(request))
        self._runners[request.job] = self._runner(record, await self._store.create(record))
        return _view(record)

    async def start(self, request: JobName) -> dict[str, Any]:
        """Open the first round, or go on after a stop or a failure.

        Raises:
            RefusedError: if the job is done, or too few devices can take part.
        """
        runner = self._require(request.job)
        job = runner.view
        if job.state == "done":
            raise RefusedError(f"start job {job.job}: all its rounds are closed; create another job")
        able = self._outside.candidates(JobFold(job.request))
        needed = job.request.min_updates
        if len(able) < needed:
            raise RefusedError(
                f"start job {job.job}: {len(able)} enrolled devices of fleet {job.fleet} have dataset "
                f"{job.request.dataset}, needed are {needed}; see `causeway device list --fleet {job.fleet}`"
            )
        record = await runner.start(utc_now())
        self._wake.set()
        return _view(record)

    async def stop(self, request: JobName) -> dict[str, Any]:
        """Open nothing further."""
        return _view(await self._require(request.job).stop(utc_now()))

    async def show(self, request: JobName) -> dict[str, Any]:
        """One job."""
        return _view(self._require(request.job).view)

    async def list(self, _: rpc.Nothing) -> list[dict[str, Any]]:
        """Every job, by name."""
        return [_view(self._runners[name].view) for name in sorted(self._runners)]

    async def _step(self, runner: JobRunner) -> None:
        try:
            await runner.step(utc_now())
        except Exception as error:  # noqa: BLE001 - whatever hinders one job must not stop the others; the next turn tries again
            metrics.FAILED_STEPS.inc()
            log.warning("job.step_failed", job=runner.view.job, error=repr(error))
            runner.retry_at = time.monotonic() + RETRY_S

    def _runner(self, record: JobRecord, revision: int) -> JobRunner:
        return JobRunner(record, revision, self._ledger, self._store, self._outside)

    def _require(self, job: str) -> JobRunner:
        runner = self._runners.get(job)
        if runner is None:
            raise NotFoundError(f"there is no job {job}; see `causeway train list`")
        return runner


def _view(record: JobRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude={"request", "base_sequence", "closed_at"})
