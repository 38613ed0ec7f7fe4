"""What the courier's tests share: what streams hold, what metrics say, letters into mailboxes."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta

import pytest
from nats.js.errors import NotFoundError
from ulid import ULID

from schemas.events import Message
from services.courier.up.chain import MESSAGE_ID
from services.courier.up.ordering import LaneKey
from services.kit.bus import Bus
from services.kit.keys import read_letter_key
from services.kit.mailbox import Draft, Mailbox
from services.kit.puller import scan
from tests.support.edge import EdgeProcess
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol, in_bus

Stored = list[tuple[str, dict[str, str], bytes]]


def stored(live: LivePlatform, stream: str = "IN", user: str = "courier") -> Stored:
    """Subject, headers and body of every message of a stream."""

    async def read(bus: Bus) -> Stored:
        try:
            return [(m.subject, dict(m.headers or {}), m.data) async for m in scan(bus, stream)]
        except NotFoundError:
            return []

    return in_bus(live, user, read)


def letters(live: LivePlatform, kind: str = "event") -> list[str]:
    """Message ids in IN of one kind, in order."""
    return [headers[MESSAGE_ID] for subject, headers, _ in stored(live) if subject.startswith(f"cw.in.{kind}.")]


def ids(device: RawDevice, lane: str, count: int) -> list[str]:
    """Message ids of a lane's first letters."""
    key = LaneKey(device.fleet, device.name, device.epoch, lane)
    return [key.message_id(n) for n in range(1, count + 1)]


def speaking(live: LivePlatform, name: str = "cam-1") -> RawDevice:
    """Start the courier; a connected device that has one letter in IN."""
    device = RawDevice(live, name)
    enrol(live, device)
    live.start_service("courier")
    device.connect()
    device.greet()
    device.send()
    device.settle()
    return device


def start_standby(live: LivePlatform, monkeypatch: pytest.MonkeyPatch, name: str = "courier-2") -> None:
    """Start a second courier, which is ready as a standby when this returns."""
    monkeypatch.setenv("CAUSEWAY_HTTP__HEALTH_PORTS", json.dumps({"courier": 0}))
    live._spawn(name, [sys.executable, "-m", "services.courier", "--state", str(live.state.root)])
    started = lambda: re.search(r'"health_port": (\d+), "event": "service.started"', live.log(name))
    port = live.settings.http.health_ports[name] = int(eventually(started, "the standby to start")[1])
    eventually(lambda: live._ready(name, port), "the standby to be ready")


def counter(live: LivePlatform, name: str) -> float:
    """Sum of a counter over its labels."""
    lines = live.metrics("courier").splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def post(
    live: LivePlatform,
    device: RawDevice | EdgeProcess,
    kind: str,
    *data: Message,
    slot: str | None = None,
    revision: int = 1,
    lifetime_s: float = 600,
    service: str = "registry",
) -> list[str]:
    """Put letters of a service into a mailbox, with revisions from `revision` on; returns their ids."""
    made = [str(ULID()) for _ in data]

    async def write(bus: Bus) -> None:
        key = read_letter_key(live.state.service_key(service))
        mailbox = Mailbox(bus.js, service, live.settings.platform, key.signer, key.generation)
        now = datetime.now(UTC)
        for number, (letter_id, each) in enumerate(zip(made, data, strict=True), start=revision):
            draft = Draft(
                kind, device.address, each, letter_id, slot or letter_id, number, now + timedelta(seconds=lifetime_s)
            )
            await mailbox.post(draft, now)

    in_bus(live, service, write)
    return made
