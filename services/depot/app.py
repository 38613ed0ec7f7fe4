"""Wires the depot."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Gauge

from schemas.depot import TrustAnnouncement
from schemas.topics import Channel, broadcast_subject, up_pattern
from services.depot.announcer import Announcer
from services.depot.freshness import Freshness
from services.depot.handlers import Verbs, spread_s
from services.depot.metadata import SERVICES_FILE
from services.depot.packs import Packs
from services.depot.pieces import PieceServer
from services.depot.register import Register
from services.depot.repository import Repository
from services.depot.requests import Requests
from services.kit import rpc
from services.kit.api.depot import PackRequest, PublishRequest, RegisterRequest, ReleaseRequest
from services.kit.artifacts import open_store
from services.kit.devices import DeviceBook
from services.kit.errors import UnreachableError
from services.kit.records import RegistryKeys
from services.kit.rejects import Turnstile
from services.kit.rpc import Nothing
from services.kit.service import Service, utc_now

log = structlog.get_logger()

KNOWN = Gauge("causeway_depot_known_devices", "Devices whose standing the depot knows.")

RENEWAL_S = 600.0
"""How often expiry is looked at."""


async def wire(service: Service) -> None:
    """Build the parts of the depot and subscribe."""
    bus = service.bus
    repository = Repository(service.state.trust)
    store = open_store(service.state, service.settings)
    register = Register(store, await bus.bucket("recipes"))
    book = DeviceBook(RegistryKeys(service.state).open_record)
    KNOWN.set_function(lambda: len(book))

    async def publish(subject: str, data: bytes) -> None:
        await bus.nc.publish(subject, data)

    async def broadcast(announcement: TrustAnnouncement) -> None:
        fleets = {record.fleet for record in book.all()} | {service.settings.fleet}
        spread = announcement.model_copy(update={"spread_s": spread_s(len(book))})
        for fleet in sorted(fleets):
            await publish(broadcast_subject(fleet, "trust"), spread.write())

    def read(name: str) -> bytes:
        return repository.services() if name == SERVICES_FILE else repository.file(name)

    pieces = PieceServer(store, register, publish)
    turnstile = Turnstile(bus, service.name, frozenset({"hello", "want"}))
    packs = Packs(read)
    requests = Requests(repository, packs, pieces, book, turnstile, publish, time.monotonic)
    announcer = Announcer(service.announce)
    verbs = Verbs(
        repository,
        Freshness(repository, service.state.freshness_keys),
        packs,
        store,
        register,
        await bus.bucket("releases"),
        announcer,
        broadcast,
        utc_now,
    )
    rpc.serve(bus, "depot", "register", RegisterRequest, verbs.register)
    rpc.serve(bus, "depot", "publish", PublishRequest, verbs.publish)
    rpc.serve(bus, "depot", "trust", Nothing, verbs.trust)
    rpc.serve(bus, "depot", "pack", PackRequest, verbs.pack)
    rpc.serve(bus, "depot", "list", Nothing, verbs.list_all)
    rpc.serve(bus, "depot", "show", ReleaseRequest, verbs.show)
    await verbs.renew()
    await verbs.reconcile()
    service.every(RENEWAL_S, verbs.renew, "renew")
    service.spawn(announcer.run(), "announcer")
    service.spawn(pieces.run(), "pieces")
    await bus.nc.subscribe(up_pattern(Channel.STATE, "hello"), queue="depot", cb=requests.hello)
    await bus.nc.subscribe(up_pattern(Channel.PARCEL), queue="depot", cb=requests.parcel)
    service.spawn(_follow(service, book), "devices")


async def _follow(service: Service, book: DeviceBook) -> None:
    # In the background: the registry makes the bucket, and asks this service for trust while it starts.
    while True:
        try:
            await book.follow(service.bus)
            break
        except UnreachableError as error:
            log.warning("devices.awaited", error=str(error))
    service.on_close(_closer(book))


def _closer(book: DeviceBook) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        book.close()

    return close
