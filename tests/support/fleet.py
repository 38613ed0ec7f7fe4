"""Devices as services see them, without an agent: readings by the registry's hand, letters by the courier's."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from ulid import ULID

from schemas.envelope import Signer, parse
from schemas.events import DownLetter, Message
from schemas.ids import Address
from schemas.letters import Place, kind_of, read_down, write_up
from schemas.registry import Capabilities, Heartbeat
from schemas.topics import in_subject, out_pattern
from services.kit import rpc
from services.kit.api.registry import DeviceRequest, DeviceView, ListRequest
from services.kit.bus import Bus, connect
from services.kit.devices import DeviceRecord
from services.kit.errors import NotFoundError
from services.kit.streams import ensure_owned
from tests.support.platform import LivePlatform
from tests.support.records import put_records

EPOCH = "01J00000000000000000000002"
SESSION = "01J00000000000000000000001"


@dataclass
class StandInDevice:
    """One device: its key, and what it says of itself."""

    address: Address
    signer: Signer = field(default_factory=Signer.generate)
    cores: int = 4
    runners: tuple[str, ...] = ("profile@1", "evaluate@1")
    reading: dict[str, Any] = field(default_factory=lambda: {"load": 0.0, "ram_free_mb": 1_000})
    online: bool = True
    sequence: int = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            os="Linux",
            arch="aarch64",
            python="3.11",
            agent="0",
            cpu_count=self.cores,
            ram_mb=4_000,
            disk_mb=9_000,
            runners=list(self.runners),
        )

    @property
    def record(self) -> DeviceRecord:
        return DeviceRecord(
            fleet=self.address.fleet,
            device=self.address.device,
            public_key=base64.b64encode(self.signer.public_key).decode(),
            seal_key=base64.b64encode(bytes(32)).decode(),
            capabilities=self.capabilities,
            enrol_id=str(ULID()),
            bus_key="U",
            jwt_issued=0,
            jwt_expires=2**40,
            enrolled_at="2026-01-01T00:00:00Z",
        )

    @property
    def view(self) -> DeviceView:
        return DeviceView(
            fleet=self.address.fleet,
            device=self.address.device,
            standing="enrolled",
            trust_level="enrolled",
            online=self.online,
            last_seen=1_767_225_600.0,
            enrolled_at="2026-01-01T00:00:00Z",
            jwt_expires=2**40,
            capabilities=self.capabilities,
            heartbeat=Heartbeat.model_validate({"session": SESSION, "uptime_s": 1} | self.reading),
        )


class StandInFleet:
    """Answers for the registry and posts for the courier, each with that service's own credentials on the real bus."""

    def __init__(self, platform: LivePlatform, registry: Bus, courier: Bus) -> None:
        self.platform = platform
        self.registry = registry
        self.courier = courier
        self.devices: dict[Address, StandInDevice] = {}

    @classmethod
    async def start(cls, platform: LivePlatform) -> Self:
        registry = await connect(platform.state, platform.settings, "registry")
        courier = await connect(platform.state, platform.settings, "courier")
        await ensure_owned(registry.js, "registry")
        await ensure_owned(courier.js, "courier")
        fleet = cls(platform, registry, courier)
        rpc.serve(registry, "registry", "list", ListRequest, fleet._list)
        rpc.serve(registry, "registry", "show", DeviceRequest, fleet._show)
        await registry.broker.start()
        return fleet

    async def close(self) -> None:
        await self.registry.close()
        await self.courier.close()

    async def add(self, name: str, **changes: Any) -> StandInDevice:
        device = StandInDevice(Address("harbour", name), **changes)
        self.devices[device.address] = device
        await put_records(self.platform.state, self.registry, device.record)
        return device

    async def send(self, device: StandInDevice, kind: str, data: Message, letter_id: str | None = None) -> bytes:
        """Put a letter that the device signed into IN, as the courier does."""
        device.sequence += 1
        now = datetime.now(UTC)
        raw = write_up(
            kind,
            data,
            Place(EPOCH, "normal", device.sequence, 1),
            letter_id=letter_id or str(ULID()),
            address=device.address,
            platform=self.platform.settings.platform,
            time=now,
            expires=now + timedelta(hours=1),
            signer=device.signer,
        )
        await self.put(device, kind, raw)
        return raw

    async def put(self, device: StandInDevice, kind: str, raw: bytes) -> None:
        """Put a stored envelope into IN, perhaps again."""
        await self.courier.js.publish(in_subject(kind, device.address), raw)

    async def mailbox(self, kind: str) -> list[DownLetter[Any]]:
        """Every letter of a kind in OUT, in order."""
        js = self.courier.js
        found = []
        info = await js.stream_info("OUT", subjects_filter=out_pattern(kind))
        for subject in info.state.subjects or {}:
            message = await js.get_last_msg("OUT", subject, direct=True)
            envelope = parse(message.data or b"")
            assert kind_of(envelope) == kind
            found.append((message.seq, read_down(envelope.body, kind)))
        return [letter for _, letter in sorted(found, key=lambda pair: pair[0] or 0)]

    async def _list(self, request: ListRequest) -> list[dict[str, Any]]:
        views = sorted((device.view for device in self.devices.values()), key=lambda view: (view.fleet, view.device))
        wanted = [view for view in views if request.fleet in {None, view.fleet}]
        behind = [view for view in wanted if f"{view.fleet}/{view.device}" > (request.after or "")]
        return [view.model_dump(mode="json") for view in behind]

    async def _show(self, request: DeviceRequest) -> dict[str, Any]:
        device = self.devices.get(Address(request.fleet, request.device))
        if device is None:
            raise NotFoundError(f"show device {request.fleet}/{request.device}: there is none")
        return device.view.model_dump(mode="json")
