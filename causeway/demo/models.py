"""Data and models of the demo: real digits, split; a baseline from one shard; the federated result; both released."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from causeway.data.shard import ShardPlan, digits, split, write_shards
from causeway.demo.checks import DemoError
from causeway.demo.fleet import DemoDevice
from causeway.demo.stage import Stage
from causeway.learning.export import train_alone, weights_of, write_release_files
from causeway.release.publish import publish
from causeway.release.sign import sign
from causeway.release.stage import Draft, stage
from edge_runtime.learning.estimator import Weights
from edge_runtime.ota.slots import Slots
from schemas.scheduler import Values
from services.kit.api.aggregator import JobView
from services.kit.artifacts import open_store
from services.kit.service import utc_now

PLAN = {"alpha": 0.5, "smallest": 20, "holdout": 0.2, "seed": 7}
PARAMETERS: Values = {"features": 64, "hidden": 32, "classes": 10, "epochs": 5, "lr": 0.1, "batch": 16}


@dataclass(frozen=True, slots=True)
class Shards:
    """Where each device's own data lies, and what none of them trains on."""

    shards: list[Path]
    holdout: Path
    summary: str


@dataclass(frozen=True, slots=True)
class ReleaseFiles:
    """A model and its smoke test."""

    model: Path
    smoke: Path


def make_shards(folder: Path, count: int) -> Shards:
    """Split scikit-learn's digits unevenly over `count` devices."""
    x, y = digits()
    parts = split(y, ShardPlan(count, **PLAN))  # type: ignore[arg-type]
    *shards, holdout = write_shards(x, y, parts, folder)
    sizes = ", ".join(str(len(indices)) for indices in parts.shards)
    summary = f"{len(y)} images: {sizes} on the devices, {len(parts.holdout)} that none of them trains on"
    return Shards(shards, holdout, summary)


def train_baseline(scene: Stage) -> ReleaseFiles:
    """Train on one shard alone, as a device would that has nobody to learn with."""
    data = scene.root / "data"
    weights = train_alone(data / "shard-1.npz", {"epochs": 60})
    return _files(scene, "0.1.0", weights)


async def export_trained(scene: Stage, job: JobView) -> ReleaseFiles:
    """The job's newest weights as ONNX."""
    if job.weights is None:
        raise DemoError(f"job {job.job} has no weights")
    path = scene.root / "weights.safetensors"
    await open_store(scene.state, scene.settings).fetch(job.weights.sha256, path)
    return _files(scene, "0.2.0", weights_of(path))


async def release(scene: Stage, files: ReleaseFiles, model: str, version: str) -> None:
    """Stage, sign with the offline keys, publish; what an ML engineer does with three commands."""
    draft = Draft(model=model, version=version, path=files.model, smoke=files.smoke, fleets=(scene.fleet,))
    staged = stage(scene.state, draft, utc_now())
    for key in ("models.pem", "targets.pem"):  # the second only where the model is new
        if staged.missing:
            staged, _ = await asyncio.to_thread(sign, staged, scene.state.offline_keys / key)
    for line in staged.diff:
        scene.say(f"  [dim]{line}[/]")
    store = open_store(scene.state, scene.settings)
    await publish(scene.platform.bus, store, scene.settings.platform, staged)


def running_bytes(device: DemoDevice, model: str) -> bytes:
    """The first bytes of the model that a device runs, for the attacker to tamper with."""
    slots = Slots(device.state / "slots")
    digest = slots.load(model).digest
    if digest is None:
        raise DemoError(f"{device.name} runs no {model}")
    return slots.file(model, digest).read_bytes()[:65_536]


def _files(scene: Stage, version: str, weights: Weights) -> ReleaseFiles:
    with np.load(scene.root / "data" / "holdout.npz") as holdout:
        x = holdout["x"]
    return ReleaseFiles(*write_release_files(weights, x, scene.root / "models" / version))
