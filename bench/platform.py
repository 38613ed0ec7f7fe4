"""A real platform in a temporary folder, and devices with credentials of their own, minted as the registry would."""

from __future__ import annotations

import asyncio
import base64
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nkeys
from nats.aio.client import Client
from ulid import ULID

from causeway.platform.init import InitOptions, init_platform
from causeway.platform.supervisor import Supervisor
from schemas.envelope import Signer
from schemas.events import utc
from schemas.ids import Address
from schemas.registry import Capabilities
from schemas.topics import Channel, device_permissions, up_pattern
from services.kit.bus import on_bus
from services.kit.credentials import (
    BEARER_SUBSCRIPTIONS,
    NKey,
    Permissions,
    UserClaims,
    creds_text,
    public_nkey,
    user_jwt,
)
from services.kit.devices import DeviceRecord, device_key
from services.kit.folder import StateFolder, write_private
from services.kit.keys import read_letter_key
from services.kit.records import next_serial, seal_record
from services.kit.settings import Settings
from services.kit.streams import ensure_owned

FLEET = "bench"
OBSERVER = "bench"
_BACKDATE_S = 60
_LIFE_S = 86_400
_PUTS_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class BenchDevice:
    """An enrolled device: its key, its password and its client id."""

    address: Address
    signer: Signer
    jwt: str
    client_id: str


@asynccontextmanager
async def state_folder(*, tls: bool) -> AsyncIterator[tuple[StateFolder, Settings]]:
    """An initialised platform on free ports of 127.0.0.1 that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as folder:
        state = StateFolder(Path(folder) / "state")
        yield state, init_platform(state, InitOptions(tls=tls, free_ports=True))


@asynccontextmanager
async def started(state: StateFolder, services: tuple[str, ...]) -> AsyncIterator[Supervisor]:
    """nats-server and these services, ready."""
    supervisor = Supervisor(state, services)
    try:
        await supervisor.start()
        yield supervisor
    finally:
        await supervisor.stop()


@asynccontextmanager
async def watching(state: StateFolder, settings: Settings) -> AsyncIterator[Client]:
    """A connection that may listen to everything that devices say; no part of the platform may."""
    account = NKey.load(state.bus_keys / "account.nk")
    key = NKey.generate(nkeys.PREFIX_BYTE_USER)
    permissions = Permissions(publish=(), subscribe=(up_pattern(Channel.STATE, ">"), up_pattern(Channel.LETTER, ">")))
    jwt = user_jwt(account, UserClaims(OBSERVER, key.public, permissions, int(time.time()) - _BACKDATE_S))
    write_private(state.creds(OBSERVER), creds_text(jwt, key.seed_text))
    async with on_bus(state, settings, OBSERVER) as bus:
        yield bus.nc


def mint(state: StateFolder, count: int) -> list[BenchDevice]:
    """Devices `d0000` and on with bearer JWTs that allow each its own topics only."""
    account = NKey.load(state.bus_keys / "account.nk")
    issued = int(time.time()) - _BACKDATE_S
    return [_mint(account, issued, Address(FLEET, f"d{number:04d}")) for number in range(count)]


async def enrol(state: StateFolder, settings: Settings, devices: list[BenchDevice]) -> None:
    """Write the records that enrolment would have written."""
    async with on_bus(state, settings, "registry") as bus:
        await ensure_owned(bus.js, "registry")
        bucket = await bus.bucket("devices")
        signer = read_letter_key(state.service_key("registry")).signer
        for start in range(0, len(devices), _PUTS_AT_ONCE):
            batch = devices[start : start + _PUTS_AT_ONCE]
            await asyncio.gather(*(bucket.put(device_key(d.address), _record(d, signer)) for d in batch))


def metric(settings: Settings, service: str, series: str) -> float:
    """A series of a metric, with its labels as on the service's page; 0 before it first counts."""
    url = f"http://127.0.0.1:{settings.http.health_ports[service]}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{series} "))


def pid_of(supervisor: Supervisor, name: str) -> int:
    """Process id of one part of a running platform."""
    process = next(child.process for child in supervisor.children if child.name == name)
    assert process is not None
    return process.pid


def _mint(account: NKey, issued: int, address: Address) -> BenchDevice:
    signer = Signer.generate()
    claims = UserClaims(
        name=str(address),
        subject=public_nkey(signer.public_key, nkeys.PREFIX_BYTE_USER),
        permissions=Permissions(*device_permissions(address)),
        issued_at=issued,
        expires_at=issued + _LIFE_S,
        mqtt_only=True,
        bearer=True,
        subscriptions=BEARER_SUBSCRIPTIONS,
    )
    return BenchDevice(address, signer, user_jwt(account, claims), f"bench{ULID()}")


def _record(device: BenchDevice, signer: Signer) -> bytes:
    now = int(time.time())
    key = base64.b64encode(device.signer.public_key).decode()
    record = DeviceRecord(
        serial=next_serial(0),
        fleet=device.address.fleet,
        device=device.address.device,
        public_key=key,
        seal_key=key,
        capabilities=Capabilities(
            os="linux", arch="x86_64", python="3.11", agent="bench", cpu_count=4, ram_mb=4096, disk_mb=32_768
        ),
        enrol_id=str(ULID()),
        bus_key=public_nkey(device.signer.public_key, nkeys.PREFIX_BYTE_USER),
        jwt_issued=now,
        jwt_expires=now + _LIFE_S,
        enrolled_at=utc(now).isoformat(),
    )
    return seal_record(record, signer)
