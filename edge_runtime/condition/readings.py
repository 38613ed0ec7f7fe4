"""What the device says of itself: capabilities once, a heartbeat whenever asked. Implements `ports.Readings`."""

from __future__ import annotations

import os
import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from edge_runtime.condition.probes import MB, Probes
from edge_runtime.conduct.policy import Conditions
from edge_runtime.learning.datasets import Datasets
from edge_runtime.link.link import Measured
from edge_runtime.settings import EdgeSettings, OwnerLimits
from edge_runtime.version import AGENT
from schemas.registry import Capabilities, Heartbeat, Network

BUILT_IN_RUNNERS = ("profile@1", "evaluate@1")
BUILT_IN_ESTIMATORS = ("classifier@1",)
RUNTIMES = (
    "numpy",
    "onnxruntime",
    "torch",
    "tensorflow",
    "tflite-runtime",
    "ai-edge-litert",
    "scikit-learn",
    "openvino",
)
_GPUS = Path("/proc/driver/nvidia/gpus")
_NO_SESSION = "0" * 26


class DeviceReadings:
    """Reads the machine; the agent adds what only it knows (session, models, tasks, outbox)."""

    def __init__(self, settings: EdgeSettings, probes: Probes | None = None) -> None:
        self._settings = settings
        self._probes = probes or Probes()
        self._datasets = Datasets(settings.datasets)
        self._started = time.monotonic()
        self._capabilities: Capabilities | None = None

    def capabilities(self) -> Capabilities:
        """Found once, but for the data sets, whose files come and go."""
        if self._capabilities is None:
            self._capabilities = self._find()
        return self._capabilities.model_copy(update={"datasets": self._datasets.counts()})

    def unreadable(self) -> list[str]:
        """Data sets of the settings that cannot be used now, each with its file."""
        usable = self._datasets.counts()
        return [f"{name} ({path})" for name, path in self._settings.datasets.items() if name not in usable]

    def heartbeat(self) -> Heartbeat:
        """Read now; its session is not filled in."""
        power, memory, network = self._probes.power(), self._probes.memory(), self._probes.network()
        return Heartbeat(
            session=_NO_SESSION,
            uptime_s=time.monotonic() - self._started,
            load=self._probes.load(),
            cpu_ratio=self._probes.cpu_ratio(),
            ram_used_mb=memory.total_mb - memory.free_mb,
            ram_free_mb=memory.free_mb,
            disk_free_mb=self._probes.disk_free_mb(self._settings.state),
            battery_percent=power.percent,
            charging=power.charging,
            discharging=power.discharging,
            temp_c=self._probes.temp_c(),
            network=Network(kind=network, metered=self._probes.metered()),
            screen_on=self._probes.screen_on(),
            samples=self._datasets.counts(),
        )

    def conditions(self, link: Measured | None, heartbeat_s: float, limits: OwnerLimits) -> Conditions:
        """What `policy` decides by.

        Args:
            link: its figures, None if the courier does not answer at present.
            heartbeat_s: interval that is asked for.
            limits: the owner's, tightened by the twin.
        """
        power = self._probes.power()
        return Conditions(
            answered=link is not None,
            round_trip_s=link.round_trip_s if link else None,
            loss_ratio=link.loss_ratio if link else None,
            up_bytes_per_s=link.up_bytes_per_s if link else None,
            network=self._probes.network(),
            metered=self._probes.metered(),
            battery_percent=power.percent,
            charging=power.charging,
            discharging=power.discharging,
            temp_c=self._probes.temp_c(),
            memory_mb=self._probes.memory().total_mb,
            heartbeat_s=heartbeat_s,
            limits=limits,
        )

    def _find(self) -> Capabilities:
        settings, probes = self._settings, self._probes
        return Capabilities(
            os=f"{platform.system()} {platform.release()}"[:128],
            arch=platform.machine()[:128] or "unknown",
            python=platform.python_version(),
            agent=AGENT,
            cpu_count=_cores(),
            cpu_mhz=_cpu_mhz(),
            ram_mb=probes.memory().total_mb,
            disk_mb=_disk_mb(settings.state),
            gpus=_gpus(),
            battery=probes.power().percent is not None,
            thermal=probes.temp_c() is not None,
            network=probes.network(),
            runtimes=_runtimes(),
            runners=sorted({*BUILT_IN_RUNNERS, *settings.runners})[:64],
            estimators=sorted({*BUILT_IN_ESTIMATORS, *settings.estimators})[:64],
            datasets=self._datasets.counts(),
        )


def _cores() -> int:
    # A container may own fewer cores than the machine has.
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _cpu_mhz() -> float | None:
    frequency = psutil.cpu_freq()
    if frequency is None:
        return None
    return float(frequency.max or frequency.current) or None


def _disk_mb(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).total // MB


def _gpus() -> list[str]:
    names = []
    for information in sorted(_GPUS.glob("*/information")) if _GPUS.is_dir() else []:
        for line in information.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            names += [value.strip()[:128]] if key == "Model" else []
    return names[:16]


def _runtimes() -> dict[str, str]:
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = version(name)[:128]
        except PackageNotFoundError:
            continue
    return found
