"""Wires the ota service: requests and reports in, assignments out."""

from __future__ import annotations

from services.kit import rpc
from services.kit.api.ota import CreateRequest, RolloutRequest
from services.kit.devices import DeviceBook
from services.kit.intake import Intake
from services.kit.records import RegistryKeys
from services.kit.rpc import Nothing
from services.kit.service import Service
from services.ota.handlers import Rollouts
from services.ota.settings import TICK_S
from services.ota.store import RolloutStore


async def wire(service: Service) -> None:
    """Load the rollouts, repeat the letters that a crash may have kept back, then listen."""
    book = DeviceBook(RegistryKeys(service.state).open_record)
    service.wait_on("devices")
    await book.follow(service.bus)
    service.reached("devices")
    rollouts = Rollouts(service, RolloutStore(service.bus), service.mailbox(), book)
    rpc.serve(service.bus, service.name, "create", CreateRequest, rollouts.create)
    rpc.serve(service.bus, service.name, "list", Nothing, rollouts.list_rollouts)
    rpc.serve(service.bus, service.name, "show", RolloutRequest, rollouts.show)
    rpc.serve(service.bus, service.name, "abort", RolloutRequest, rollouts.abort)
    await rollouts.start()
    service.bus.on_reconnect(rollouts.start)
    service.spawn(
        Intake(service.bus, service.name, service.settings.platform, "report", rollouts.on_report, book).run(),
        "reports",
    )
    service.spawn(rollouts.work(TICK_S), "rollouts")
