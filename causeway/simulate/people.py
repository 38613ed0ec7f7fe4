"""Enrolled devices without the ceremony: keys, records and credentials as the registry would have made them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import time
from datetime import timedelta

from ulid import ULID

from edge_runtime.identity import Credentials, Identity
from edge_runtime.trust.record import TrustRecord
from schemas.depot import TrustState
from schemas.events import utc
from schemas.ids import Address
from schemas.registry import Capabilities
from schemas.trust import ServicesDocument
from services.kit.bus import Bus
from services.kit.credentials import NKey
from services.kit.devices import DeviceRecord, device_key
from services.kit.folder import StateFolder
from services.kit.keys import read_letter_key
from services.kit.records import next_serial, seal_record
from services.kit.settings import Settings
from services.registry.minting import BACKDATE_S, Mint, bus_key

FLEET = "simulated"
LIFE_S = 86_400
PUTS_AT_ONCE = 200


def make_people(state: StateFolder, settings: Settings, count: int) -> list[tuple[Identity, DeviceRecord]]:
    """Devices with keys and credentials, and the record of each."""
    mint = Mint(NKey.load(state.bus_keys / "account.nk"), read_letter_key(state.service_key("registry")).signer.seed)
    root = hashlib.sha256((state.trust / "1.root.json").read_bytes()).hexdigest()
    ca_pem = (state.ca / "ca.pem").read_text() if settings.bus.tls else None
    issued = int(time.time()) - BACKDATE_S
    return [
        _person(mint, settings, Address(FLEET, f"device-{number:04d}"), issued, root, ca_pem) for number in range(count)
    ]


async def enrol(bus: Bus, state: StateFolder, records: list[DeviceRecord]) -> None:
    """Write the records into bucket `devices`, with the credentials of the registry."""
    signer = read_letter_key(state.service_key("registry")).signer
    bucket = await bus.bucket("devices")
    for start in range(0, len(records), PUTS_AT_ONCE):
        batch = records[start : start + PUTS_AT_ONCE]
        await asyncio.gather(*(bucket.put(device_key(each.address), seal_record(each, signer)) for each in batch))


def trust_of(state: StateFolder, head: TrustState) -> TrustRecord:
    """What a device has accepted that is up to date, without the metadata itself: nothing is installed here."""
    return TrustRecord(
        root_sha256=hashlib.sha256((state.trust / "1.root.json").read_bytes()).hexdigest(),
        accepted=head,
        cache="cache-1",
        files={},
        floors={},
        services=ServicesDocument.read((state.trust / "services.json").read_bytes()),
        refreshed=utc(time.time()),
    )


def _person(
    mint: Mint, settings: Settings, address: Address, issued: int, root: str, ca_pem: str | None
) -> tuple[Identity, DeviceRecord]:
    identity = Identity(
        fleet=address.fleet,
        device=address.device,
        platform=settings.platform,
        url=settings.bus.mqtt_url,
        ca_pem=ca_pem,
        root_sha256=root,
        letter_seed=base64.b64encode(os.urandom(32)).decode(),
        seal_seed=base64.b64encode(os.urandom(32)).decode(),
    )
    key = base64.b64encode(identity.public_key).decode()
    record = DeviceRecord(
        serial=next_serial(0),
        fleet=address.fleet,
        device=address.device,
        public_key=key,
        seal_key=base64.b64encode(identity.seal_key).decode(),
        capabilities=Capabilities(
            os="linux", arch="x86_64", python="3.11", agent="simulate", cpu_count=1, ram_mb=1_024, disk_mb=8_192
        ),
        enrol_id=str(ULID()),
        bus_key=bus_key(key),
        jwt_issued=issued,
        jwt_expires=issued + LIFE_S,
        enrolled_at=utc(issued).isoformat(),
    )
    credentials = Credentials(
        jwt=mint.device_jwt(record),
        client_id=mint.client_id(address, record.enrol_id),
        received=utc(issued),
        expires=utc(issued) + timedelta(seconds=LIFE_S),
    )
    return identity.model_copy(update={"credentials": credentials}), record
