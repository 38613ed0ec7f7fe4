"""The registry's letters: parse, ask the core, apply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from schemas.envelope import Verifier, parse
from schemas.errors import EnvelopeError
from schemas.ids import Address
from schemas.registry import Enrol, EventReport, Twin, Welcome
from schemas.topics import in_subject
from services.kit.api.depot import TrustAnswer
from services.kit.api.registry import DeviceEvent, DeviceFact
from services.kit.intake import Arrival
from services.kit.mailbox import Draft, Mailbox
from services.kit.neighbours import NeighboursAuthority
from services.kit.rejects import Rejects
from services.registry.enrolment import Admit, Application, Ignore, Known, Refuse, answer_id, decide
from services.registry.facts import Announce, Facts
from services.registry.metrics import ANSWERS, REFUSAL_REASONS, REFUSALS, REFUSED_THERE
from services.registry.minting import Mint, neighbour_lease
from services.registry.settings import RegistrySettings
from services.registry.store import Devices, Stored, Tokens

log = structlog.get_logger()

Now = Callable[[], datetime]
Trust = Callable[[], Awaitable[TrustAnswer]]


class Enrolment:
    """Enrol letters and their answers."""

    def __init__(
        self,
        *,
        devices: Devices,
        tokens: Tokens,
        mint: Mint,
        neighbours: NeighboursAuthority,
        mailbox: Mailbox,
        trust: Trust,
        announce: Announce,
        facts: Facts,
        rejects: Rejects,
        settings: RegistrySettings,
        now: Now,
    ) -> None:
        self._devices = devices
        self._tokens = tokens
        self._mint = mint
        self._neighbours = neighbours
        self._mailbox = mailbox
        self._trust = trust
        self._announce = announce
        self._facts = facts
        self._rejects = rejects
        self._settings = settings
        self._now = now

    async def handle(self, arrival: Arrival) -> None:
        """Answer one enrol letter with a welcome.

        Raises:
            ContractError: if the letter is not signed by the key that it brings.
        """
        address, letter = arrival.address, arrival.letter
        enrol: Enrol = letter.data
        envelope = parse(arrival.envelope)
        own = Verifier.from_base64(enrol.public_key)
        envelope.verify({own.keyid: own})
        await self._facts.settle(address)
        stored = self._devices.get(address)
        token = await self._tokens.get(enrol.token) if enrol.token else None
        application = Application(
            address=address,
            letter_id=letter.id,
            stored_at=arrival.stored_at.timestamp(),
            enrol=enrol,
            by_current=stored is not None and _signed_by(arrival.envelope, stored.record.public_key),
        )
        owner = self._devices.owner_of(enrol.public_key)
        known = Known(
            token=token.record if token else None,
            record=stored.record if stored else None,
            key_owner=owner if owner != address else None,
        )
        verdict = decide(application, known, int(self._now().timestamp()), self._settings.jwt_life_s)
        if isinstance(verdict, Ignore):
            log.info("enrol.superseded", device=str(address), letter=letter.id)
            return
        if isinstance(verdict, Refuse):
            await self._refuse(application, verdict)
            await self._rejects.keep(
                arrival.envelope,
                subject=in_subject(letter.kind, address),
                kind=letter.kind,
                reason=verdict.reason,
                message=verdict.message,
            )
            return
        if isinstance(verdict, Admit):
            # The token first: spent by this letter, it lets the same letter in again after a crash, and no other.
            if verdict.token is not None and token is not None and verdict.token != token.record:
                await self._tokens.write(verdict.token, token.revision)
            stored = await self._devices.write(verdict.record, stored.revision if stored else 0)
        # In a repetition, too: the last attempt may have died before it was told.
        event = "device-enrolled" if enrol.token else "device-renewed"
        fact = DeviceFact(fleet=address.fleet, device=address.device, enrol_id=letter.id)
        await self._announce(event, fact, letter.id)
        log.info(event.replace("-", "."), device=str(address), letter=letter.id)
        assert stored is not None
        await self._welcome(stored)
        ANSWERS.labels("welcome").inc()

    async def _welcome(self, stored: Stored) -> None:
        record = stored.record
        trust = await self._trust()
        expires = datetime.fromtimestamp(record.jwt_expires, UTC)
        welcome = Welcome(
            enrol_id=record.enrol_id,
            jwt=self._mint.device_jwt(record),
            client_id=self._mint.client_id(record.address, record.enrol_id),
            tuf_floors=trust.floors,
            twin=Twin(heartbeat_s=self._settings.heartbeat_s),
            expires=expires,
            certificate=self._neighbours.certify(neighbour_lease(record)),
            neighbours_ca=self._neighbours.ca_pem,
        )
        await self._post(record.address, welcome, stored.revision, expires)

    async def _refuse(self, application: Application, refusal: Refuse) -> None:
        address = application.address
        ANSWERS.labels(refusal.reason).inc()
        log.warning("enrol.refused", device=str(address), letter=application.letter_id, reason=refusal.reason)
        stored = self._devices.get(address)
        welcome = Welcome(enrol_id=application.letter_id, refused=True, reason=refusal.reason, message=refusal.message)
        await self._post(address, welcome, stored.revision if stored else 0, None)

    async def _post(self, address: Address, welcome: Welcome, revision: int, expires: datetime | None) -> None:
        now = self._now()
        end = datetime.fromtimestamp(now.timestamp() + self._settings.welcome_life_s, UTC)
        letter_id = answer_id(address, welcome.enrol_id)
        draft = Draft(
            kind="welcome",
            address=address,
            data=welcome,
            letter_id=letter_id,
            slot=letter_id,
            revision=revision,
            expires=min(end, expires) if expires else end,
        )
        await self._mailbox.post(draft, now)


class Events:
    """What devices report goes to EVENTS, where operators see it."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce

    async def handle(self, arrival: Arrival) -> None:
        """Announce one event letter."""
        letter, address = arrival.letter, arrival.address
        report: EventReport = letter.data
        event = DeviceEvent(
            fleet=address.fleet,
            device=address.device,
            letter=letter.id,
            time=letter.time.isoformat(),
            name=report.name,
            severity=report.severity,
            reason=report.reason,
            message=report.message,
            details=dict(report.details),
        )
        await self._announce("device-event", event, letter.id)
        if report.name in REFUSALS:
            reason = report.reason if report.reason in REFUSAL_REASONS else "other"
            REFUSED_THERE.labels(report.name, reason).inc()
            log.warning(
                "device.refused",
                device=str(address),
                what=report.name,
                reason=report.reason,
                message=report.message,
                letter=letter.id,
            )


def _signed_by(envelope: bytes, public_key: str) -> bool:
    current = Verifier.from_base64(public_key)
    try:
        parse(envelope).verify({current.keyid: current})
    except EnvelopeError:
        return False
    return True
