"""Wires the courier."""

from __future__ import annotations

from schemas.topics import STATES, UP_LETTERS
from services.courier.bundles.wiring import Bundles
from services.courier.courier import Courier
from services.courier.down.postman import Postman
from services.courier.handlers import StateHandlers
from services.courier.integrity.wiring import Integrity
from services.courier.lease import Lease
from services.courier.premises import Premises
from services.courier.receipts.receipts import Receipts
from services.courier.receipts.sessions import Sessions
from services.courier.settings import CourierSettings
from services.courier.up.carried import CarriedLetters
from services.courier.up.intake import Intake
from services.kit.devices import DeviceBook
from services.kit.keys import read_letter_key
from services.kit.pipeline import Pipeline
from services.kit.records import RegistryKeys
from services.kit.rejects import Turnstile
from services.kit.service import Service
from services.kit.settings import load_table


async def wire(service: Service) -> None:
    """Connect the parts."""
    bus, settings = service.bus, load_table(service.state, service.name, CourierSettings)
    pipeline = Pipeline(bus, settings.publish_timeout_s)
    await pipeline.open()
    lease = Lease(bus, settings.lease_refresh_s)
    book = DeviceBook(RegistryKeys(service.state).open_record)
    sessions = Sessions(settings.max_sessions)
    turnstile = Turnstile(bus, service.name, UP_LETTERS | STATES, settings.rejects_per_minute)
    key = read_letter_key(service.state.service_key("courier"))
    premises = Premises(bus, key, service.settings.platform, book, settings)
    receipts = Receipts(premises, sessions)
    postman = Postman(bus, pipeline, settings)
    carried = CarriedLetters()
    bundles = Bundles(premises, carried=carried, postman=postman, receipts=receipts, turnstile=turnstile)
    integrity = Integrity(bus, book, receipts, postman, settings)
    intake = Intake(
        premises,
        pipeline,
        lease,
        receipts=receipts,
        sessions=sessions,
        turnstile=turnstile,
        carried=carried,
        integrity=integrity,
    )
    handlers = StateHandlers(intake, postman, receipts, bundles, sessions, turnstile)
    await handlers.subscribe(bus)
    Courier(
        service,
        lease=lease,
        book=book,
        intake=intake,
        postman=postman,
        receipts=receipts,
        handlers=handlers,
        bundles=bundles,
        integrity=integrity,
    ).start()
