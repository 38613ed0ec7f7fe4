"""Wires the registry."""

from __future__ import annotations

import time

import structlog
from pydantic import BaseModel

from schemas.topics import event_subject
from services.kit import rpc
from services.kit.api.depot import TrustAnswer
from services.kit.bus import Bus, connect
from services.kit.credentials import NKey
from services.kit.devices import DeviceRecord
from services.kit.errors import RefusedError, UnreachableError
from services.kit.intake import Intake
from services.kit.keys import read_letter_key
from services.kit.neighbours import open_neighbours_authority
from services.kit.permissions import SYSTEM_USER
from services.kit.records import RegistryKeys
from services.kit.rejects import Rejects
from services.kit.service import Service, utc_now
from services.kit.settings import load_table
from services.registry.claims import Claims
from services.registry.custody import Custody
from services.registry.door import Door
from services.registry.enrolment import live_revocations
from services.registry.facts import Facts
from services.registry.letters import Enrolment, Events
from services.registry.losses import LossBook
from services.registry.metrics import observe
from services.registry.minting import Mint
from services.registry.presence import Presence
from services.registry.settings import RegistrySettings
from services.registry.store import Devices, Tokens
from services.registry.table import Table
from services.registry.telemetry import Telemetry
from services.registry.verbs import Verbs

log = structlog.get_logger()

METRICS_S = 1.0


async def wire(service: Service) -> None:
    """Build the parts of the registry and subscribe."""
    bus, state = service.bus, service.state
    settings = load_table(state, service.name, RegistrySettings)
    table = Table()
    key = read_letter_key(state.service_key(service.name))
    devices = Devices(RegistryKeys(state).require(key.signer).open_record, key.signer)

    def note(record: DeviceRecord) -> None:
        if record.standing == "enrolled":
            table.know(record.address, online=record.online, now=time.time())
        else:
            table.forget(record.address, record.standing)

    async def announce(event: str, data: BaseModel, identity: str) -> None:
        body = data.model_dump_json().encode()
        await bus.js.publish(event_subject(service.name, event), body, headers={"Nats-Msg-Id": f"{event}:{identity}"})

    async def trust() -> TrustAnswer:
        answer = await rpc.call(bus, "depot", "trust", timeout_s=settings.trust_timeout_s)
        return TrustAnswer.model_validate(answer)

    devices.on_change(note)
    facts = Facts(devices, announce)
    await devices.follow(bus)
    service.on_close(devices.close)
    tokens = Tokens(await bus.bucket("tokens"), key.signer.seed)
    account = NKey.load(state.bus_keys / "account.nk")
    mint = Mint(account, key.signer.seed)

    system = await _connect_system(service)
    claims = Claims(
        state, system, lambda: live_revocations(devices.all(), int(time.time())), time.time, settings.max_revocations
    )
    try:
        await claims.settle()
    except (RefusedError, UnreachableError) as error:
        # What was pushed before stands in the server's own store; the rest is tried again below.
        log.error("revocations.not_pushed", error=str(error))
    service.every(settings.claims_check_s, claims.settle, "revocations")

    await Door(system, account.public, devices.book.get, logged_per_s=settings.rejects_per_s).listen()

    rejects = Rejects(bus, service.name)
    telemetry = Telemetry(bus, table, rejects, batch=settings.batch, rejects_per_s=settings.rejects_per_s)
    presence = Presence(
        table, telemetry, devices, silence_s=settings.offline_after_s, in_flight=settings.writes_in_flight
    )
    service.wait_on("telemetry")
    service.spawn(telemetry.run(lambda: service.reached("telemetry")), "telemetry")
    service.every(settings.sweep_s, presence.turn, "presence")
    service.every(settings.sweep_s, devices.restore, "restoration")
    service.every(settings.sweep_s, facts.turn, "facts")

    platform = service.settings.platform
    enrolment = Enrolment(
        devices=devices,
        tokens=tokens,
        mint=mint,
        neighbours=open_neighbours_authority(state, platform, utc_now()),
        mailbox=service.mailbox(),
        trust=trust,
        announce=announce,
        facts=facts,
        rejects=rejects,
        settings=settings,
        now=utc_now,
    )
    service.spawn(Intake(bus, service.name, platform, "enrol", enrolment.handle, None).run(), "enrol")
    losses = LossBook(await bus.bucket("losses"), announce)
    for kind, handle in (("event", Events(announce).handle), ("losses", losses.handle)):
        service.spawn(Intake(bus, service.name, platform, kind, handle, devices.book).run(), kind)

    verbs = Verbs(
        devices=devices,
        tokens=tokens,
        table=table,
        mint=mint,
        trust=trust,
        facts=facts,
        claims=claims,
        losses=losses,
        settings=settings,
        url=service.settings.bus.mqtt_url,
        ca_pem=(state.ca / "ca.pem").read_text() if service.settings.bus.tls else None,
        platform=platform,
        now=utc_now,
    )
    verbs.serve(bus)
    Custody(
        bus,
        devices=devices,
        mailbox=service.mailbox(),
        facts=facts,
        view=verbs.view,
        platform=platform,
        now=utc_now,
    ).serve(bus)

    async def measure() -> None:
        observe(devices, table)

    service.every(METRICS_S, measure, "metrics")


async def _connect_system(service: Service) -> Bus:
    """The connection that revocations go over."""
    system = await connect(service.state, service.settings, SYSTEM_USER)
    service.on_close(system.close)
    service.spawn(system.until_failed(), "system connection")
    return system
