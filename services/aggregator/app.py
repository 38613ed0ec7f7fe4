"""Wires the aggregator."""

from __future__ import annotations

from services.aggregator.handlers import Aggregator, Platform
from services.aggregator.store import JobStore, Ledger
from services.kit import rpc
from services.kit.api.aggregator import JobName, JobRequest
from services.kit.artifacts import open_store
from services.kit.devices import DeviceBook
from services.kit.intake import Intake
from services.kit.records import RegistryKeys
from services.kit.service import Service


async def wire(service: Service) -> None:
    """Take over the stored jobs and the devices, then serve."""
    bus = service.bus
    book = DeviceBook(RegistryKeys(service.state).open_record)
    platform = Platform(service, book, open_store(service.state, service.settings))
    aggregator = Aggregator(Ledger(bus), JobStore(await bus.bucket("jobs")), platform)
    await aggregator.load()
    await book.follow(bus)
    bus.on_reconnect(aggregator.forget)
    rpc.serve(bus, service.name, "create", JobRequest, aggregator.create)
    rpc.serve(bus, service.name, "start", JobName, aggregator.start)
    rpc.serve(bus, service.name, "stop", JobName, aggregator.stop)
    rpc.serve(bus, service.name, "show", JobName, aggregator.show)
    rpc.serve(bus, service.name, "list", rpc.Nothing, aggregator.list)
    service.spawn(
        Intake(bus, service.name, service.settings.platform, "update", aggregator.on_update, book).run(), "updates"
    )
    service.spawn(aggregator.run(), "rounds")
