"""Wires the scheduler: registry and leases in, letters out, three verbs."""

from __future__ import annotations

from services.kit import rpc
from services.kit.api.scheduler import SubmitRequest, TaskListRequest, TaskRequest
from services.kit.devices import DeviceBook
from services.kit.intake import Intake
from services.kit.records import RegistryKeys
from services.kit.service import Service
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.nodes import RegistryFleet
from services.scheduler.store import TaskStore

TICK_S = 0.5
PRUNE_S = 60.0


async def wire(service: Service) -> None:
    """Load the tasks, repeat the letters that a crash may have held back, then listen."""
    book = DeviceBook(RegistryKeys(service.state).open_record)
    await book.follow(service.bus)
    store = await TaskStore.open(service.bus)
    dispatcher = Dispatcher(service, store, service.mailbox(), RegistryFleet(service.bus, book))
    await dispatcher.start()
    rpc.serve(service.bus, service.name, "submit", SubmitRequest, dispatcher.submit)
    rpc.serve(service.bus, service.name, "list", TaskListRequest, dispatcher.list_tasks)
    rpc.serve(service.bus, service.name, "show", TaskRequest, dispatcher.show)
    service.spawn(
        Intake(service.bus, service.name, service.settings.platform, "result", dispatcher.on_result, book).run(),
        "results",
    )
    service.spawn(dispatcher.follow(), "follow")
    service.every(TICK_S, dispatcher.tick, "tick")
    service.every(PRUNE_S, dispatcher.prune, "prune")
