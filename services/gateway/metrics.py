"""`/metrics`: the gateway's own figures, and those of the platform under the names of the mission."""

from __future__ import annotations

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.gateway.platform import Platform
from services.kit.api.aggregator import JobView
from services.kit.api.registry import DeviceView
from services.kit.errors import PlatformError

log = structlog.get_logger()

REQUESTS = Counter(
    "causeway_http_requests_total", "Requests answered, by route template and status.", ["route", "status"]
)
SECONDS = Histogram("causeway_http_request_seconds", "Time to answer, by route template.", ["route"])


class _Figures(Collector):
    """Figures of one moment. What could not be asked is absent: a missing reading is not zero."""

    def __init__(self, devices: list[DeviceView] | None, jobs: list[JobView] | None) -> None:
        self._devices = devices
        self._jobs = jobs

    def collect(self) -> list[GaugeMetricFamily]:
        """The figures."""
        found = []
        if self._devices is not None:
            online = sum(view.online for view in self._devices)
            found.append(GaugeMetricFamily("devices_connected_total", "Devices that are connected now.", online))
            found.append(GaugeMetricFamily("causeway_devices", "Devices that are known.", len(self._devices)))
        if self._jobs is not None:
            rounds = sum(len(job.history) for job in self._jobs)
            found.append(
                GaugeMetricFamily("training_rounds_completed", "Rounds that closed, of all jobs kept.", rounds)
            )
        return found


async def render(platform: Platform) -> bytes:
    """The whole page in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Figures(await _devices(platform), await _jobs(platform)))
    return generate_latest() + generate_latest(registry)


async def _devices(platform: Platform) -> list[DeviceView] | None:
    try:
        return await platform.devices()
    except PlatformError as error:
        log.warning("metrics.incomplete", error=str(error))
        return None


async def _jobs(platform: Platform) -> list[JobView] | None:
    try:
        return await platform.jobs()
    except PlatformError as error:
        log.warning("metrics.incomplete", error=str(error))
        return None
