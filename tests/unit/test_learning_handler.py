"""Round letters on a device: one answer each, no training twice, the owner's limits, and no numpy in the agent."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ulid import ULID

from edge_runtime.errors import FetchError, OutboxError, WorkerError
from edge_runtime.folder import EdgeFolder
from edge_runtime.learning import trainer
from edge_runtime.learning.catalogue import TrainingError
from edge_runtime.learning.classifier import Classifier
from edge_runtime.learning.handler import LearningHandler
from edge_runtime.ports import Context
from edge_runtime.settings import EdgeSettings, OwnerLimits
from schemas.aggregator import Artifact, Progress, Round, Update
from schemas.events import DownLetter
from schemas.ids import Address
from schemas.registry import Heartbeat

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PARAMETERS = {"features": 3, "hidden": 4, "classes": 2, "epochs": 2}
BASE = Artifact(sha256="a" * 64, length=10, recipe="b" * 64, pieces=1)


class Device:
    """A context whose parts are here to be looked at, and to fail on demand."""

    def __init__(self, root: Path, **settings: Any) -> None:
        random = np.random.default_rng(3)
        np.savez(root / "data.npz", x=random.random((20, 3)).astype(np.float32), y=np.arange(20) % 2)
        self.root = root
        self.settings = EdgeSettings(state=root, datasets={"digits": root / "data.npz"}, **settings)
        self.sent: list[Update] = []
        self.progress: list[Progress] = []
        self.trainings = 0
        self.reading = Heartbeat(session=str(ULID()), uptime_s=1)
        self.fetch_errors: list[FetchError] = []
        self.outbox_error: OutboxError | None = None
        self.job_error: WorkerError | None = None
        self.now = NOW

    def handler(self) -> LearningHandler:
        context = Context(
            address=Address("harbour", "cam-1"),
            platform=str(ULID()),
            folder=EdgeFolder(self.root / "state"),
            settings=self.settings,
            clock=SimpleNamespace(now=lambda: self.now),
            sender=SimpleNamespace(
                send=self._send, publish_state=lambda kind, data: self.progress.append(data), send_parcel=None
            ),
            jobs=SimpleNamespace(call=None),
            heavy_jobs=SimpleNamespace(call=self._call),
            parcels=SimpleNamespace(fetch=self._fetch),
            readings=SimpleNamespace(heartbeat=lambda: self.reading, capabilities=None),
        )
        return LearningHandler(context)

    def _send(self, kind: str, data: Any, *, lane: Any = None) -> str:
        assert kind == "update"
        if self.outbox_error is not None:
            raise self.outbox_error
        self.sent.append(data)
        return str(ULID())

    async def _fetch(self, artifact: Artifact, destination: Path) -> None:
        if self.fetch_errors:
            raise self.fetch_errors.pop(0)
        Classifier(PARAMETERS, seed=1).save(destination)

    async def _call(self, job: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert job == "train"
        assert timeout_s > 0
        self.trainings += 1
        if self.job_error is not None:
            raise self.job_error
        return await asyncio.to_thread(trainer.run, params)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def invitation(letter_id: str | None = None, **changes: Any) -> DownLetter[Round]:
    fields: dict[str, Any] = {
        "job": "digits-1",
        "round": 1,
        "attempt": 1,
        "base": BASE,
        "estimator": "classifier@1",
        "dataset": "digits",
        "parameters": PARAMETERS,
        "unit": 1,
        "opens": NOW,
        "deadline": NOW + timedelta(seconds=60),
    }
    letter_id = letter_id or str(ULID())
    return DownLetter[Round](
        id=letter_id,
        source="/services/aggregator",
        type="causeway.round.v1",
        time=NOW,
        data=Round(**fields | changes),
        platform=str(ULID()),
        recipient="/fleets/harbour/devices/cam-1",
        expires=NOW + timedelta(seconds=60),
        generation=1,
        revision=1,
        slot=letter_id,
    )


async def test_a_round_letter_is_answered_with_a_trained_vector(device: Device) -> None:
    await device.handler().handle(invitation())
    [update] = device.sent
    assert (update.outcome, update.samples, update.base) == ("ok", 20, BASE.sha256)
    assert update.vector is not None
    assert len(base64.b64decode(update.vector)) == update.length == 4 * (3 * 4 + 4 + 4 * 2 + 2)
    assert {"loss", "accuracy", "train_s"} <= set(update.metrics)
    assert [(p.epoch, p.epochs) for p in device.progress] == [(0, 2), (2, 2)]
    assert [path.name for path in (device.root / "state" / "learning").iterdir()] == ["digits-1.1.json"]


async def test_the_same_letter_has_one_answer_also_after_a_restart(device: Device) -> None:
    letter = invitation()
    handler = device.handler()
    await asyncio.gather(handler.handle(letter), handler.handle(letter))
    await device.handler().handle(letter)
    await device.handler().resume()
    assert (device.trainings, len(device.sent)) == (1, 1)


@pytest.mark.parametrize("way", ["resume", "handle"])
async def test_a_crash_between_training_and_sending_does_not_train_twice(device: Device, way: str) -> None:
    letter = invitation()
    device.outbox_error = OutboxError("the disk is full")
    with pytest.raises(OutboxError):
        await device.handler().handle(letter)
    device.outbox_error = None
    handler = device.handler()
    await (handler.resume() if way == "resume" else handler.handle(letter))
    await handler.handle(letter)
    assert (device.trainings, [update.outcome for update in device.sent]) == (1, ["ok"])


async def test_the_next_attempt_at_a_round_is_answered_with_the_same_vector(device: Device) -> None:
    handler = device.handler()
    first = invitation()
    await handler.handle(first)
    await handler.handle(invitation(attempt=2))
    await handler.handle(first)
    assert device.trainings == 1
    assert [(update.attempt, update.sha256) for update in device.sent] == [
        (1, device.sent[0].sha256),
        (2, device.sent[0].sha256),
    ]
    await handler.handle(invitation(attempt=3, base=BASE.model_copy(update={"sha256": "c" * 64})))
    assert device.trainings == 2


@pytest.mark.parametrize(
    ("limits", "reading", "changes", "reason"),
    [
        ({"training": False}, {}, {}, "owner_limits"),
        ({}, {"battery_percent": 10.0}, {}, "battery"),
        ({}, {"battery_percent": 10.0, "charging": True, "discharging": True}, {}, "battery"),
        ({"max_temp_c": 40}, {"temp_c": 41.0}, {}, "heat"),
        ({}, {}, {"dataset": "faces"}, "no_dataset"),
        ({}, {}, {"estimator": "yolo@1"}, "no_estimator"),
        ({}, {}, {"deadline": NOW}, "too_late"),
    ],
)
async def test_the_owners_limits_win(
    tmp_path: Path, limits: dict[str, Any], reading: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    device = Device(tmp_path, limits=OwnerLimits(**limits))
    device.reading = device.reading.model_copy(update=reading)
    await device.handler().handle(invitation(**changes))
    assert [(update.outcome, update.reason) for update in device.sent] == [("refused", reason)]
    assert device.trainings == 0


async def test_a_charging_device_with_a_low_battery_trains(device: Device) -> None:
    device.reading = device.reading.model_copy(update={"battery_percent": 10.0, "charging": True})
    await device.handler().handle(invitation())
    assert device.sent[0].outcome == "ok"


async def test_a_refusal_is_not_kept_for_the_next_attempt(device: Device) -> None:
    device.reading = device.reading.model_copy(update={"battery_percent": 10.0})
    handler = device.handler()
    await handler.handle(invitation())
    device.reading = device.reading.model_copy(update={"battery_percent": 90.0})
    await handler.handle(invitation(attempt=2))
    assert [update.outcome for update in device.sent] == ["refused", "ok"]


async def test_a_link_that_comes_back_is_waited_for_and_other_failures_are_reported(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.learning.handler.FETCH_RETRY_S", 0)
    device.fetch_errors = [FetchError("no link", reason="timeout")] * 2
    await device.handler().handle(invitation())
    device.fetch_errors = [FetchError("no room", reason="disk_full")]
    await device.handler().handle(invitation(round=2))
    device.job_error = WorkerError("it died", reason="crashed")
    await device.handler().handle(invitation(round=3))
    found = [(update.outcome, update.reason) for update in device.sent]
    assert found == [("ok", None), ("failed", "disk_full"), ("failed", "crashed")]


async def test_a_vector_that_no_letter_carries_is_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.learning.handler.MAX_INLINE_BYTES", 10)
    await device.handler().handle(invitation())
    assert [(update.outcome, update.reason) for update in device.sent] == [("refused", "too_large")]


async def test_what_is_remembered_is_bounded(device: Device) -> None:
    device.reading = device.reading.model_copy(update={"battery_percent": 1.0})
    handler = device.handler()
    for number in range(1, 41):
        await handler.handle(invitation(round=number))
    assert len(list((device.root / "state" / "learning").iterdir())) == 32


def test_the_trainer_explains_what_it_cannot_use(tmp_path: Path) -> None:
    Classifier(PARAMETERS).save(tmp_path / "base")
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    np.savez(tmp_path / "odd.npz", x=np.zeros((3, 9)), y=np.zeros(3))
    np.savez(tmp_path / "no_y.npz", x=np.zeros((3, 3)))
    params = {
        "estimator": "classifier@1",
        "parameters": PARAMETERS,
        "base": str(tmp_path / "base"),
        "output": str(tmp_path / "out"),
        "seed": 1,
    }
    cases = {"gone.npz": "no_dataset", "bad.npz": "bad_dataset", "odd.npz": "bad_dataset", "no_y.npz": "bad_dataset"}
    for name, reason in cases.items():
        with pytest.raises(TrainingError) as raised:
            trainer.run(params | {"dataset": str(tmp_path / name)})
        assert raised.value.reason == reason
    with pytest.raises(TrainingError) as raised:
        trainer.run(params | {"base": str(tmp_path / "bad.npz"), "dataset": ""})
    assert raised.value.reason == "bad_base"


def test_the_resident_side_imports_no_numpy() -> None:
    code = "import sys, edge_runtime.learning.handler; sys.exit('numpy' in sys.modules or 'safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
