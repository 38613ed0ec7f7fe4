"""How long a letter waits for its receipt, and how long an assignment takes until its device holds it on disk.

Up: devices publish signed letters at a steady rate; the time runs from the publication until the device has verified a
receipt that covers the letter. A device is sent at most one receipt per `COALESCING_MS`, the first at once; with the
rate spread over many devices each letter gets its own, so a second phase sends the same rate from few devices, where
receipts do wait. Down: letters signed with ota's key are posted into mailboxes; the time runs from before the signature
until the device's inbox has fsynced the letter. Then the device says got, and at the end no letter may be left.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ulid import ULID

from bench.device import Device
from bench.platform import enrol, metric, mint, started, state_folder
from bench.processes import until
from bench.report import Target, arguments, conduct, percentile, say
from schemas.envelope import Verifier
from schemas.ids import Address
from schemas.ota import Assign
from services.kit.bus import Bus, on_bus
from services.kit.folder import StateFolder
from services.kit.keys import read_letter_key
from services.kit.mailbox import Draft, Mailbox
from services.kit.settings import Settings

SERVICES = ("registry", "courier")
COALESCING_MS = 250.0
SETTLE_S = 15.0
CONNECT_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Pace:
    """How much, how long."""

    devices: int
    busy_devices: int
    per_s: float
    seconds: float


async def steadily(pace: Pace, act: Callable[[int], Any]) -> int:
    """Call `act` with 0, 1, 2 ... at the moments that the pace sets, also when one was late.

    Returns:
        How often.
    """
    begun = time.monotonic()
    count = round(pace.per_s * pace.seconds)
    for number in range(count):
        wait_s = begun + number / pace.per_s - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        act(number)
    return count


@asynccontextmanager
async def connected(state: StateFolder, settings: Settings, count: int, folder: Path) -> AsyncIterator[list[Device]]:
    """Enrolled devices that have said hello and were answered."""
    minted = mint(state, count)
    await enrol(state, settings, minted)
    keys = {}
    for service in ("courier", "ota"):
        verifier = Verifier(read_letter_key(state.service_key(service)).signer.public_key)
        keys[verifier.keyid] = verifier
    devices = [Device(device, settings.platform, keys, folder) for device in minted]
    for start in range(0, count, CONNECT_AT_ONCE):
        await asyncio.gather(*(d.connect(state, settings) for d in devices[start : start + CONNECT_AT_ONCE]))
    # The receipts of their hellos count towards the coalescing.
    await asyncio.sleep(2 * COALESCING_MS / 1_000)
    yield devices
    for device in devices:
        await device.close()


async def up(devices: list[Device], pace: Pace) -> list[float]:
    """Letters in turn from each device.

    Returns:
        Seconds from letter to receipt, one per letter.

    Raises:
        BenchError: if a letter never got a receipt; on a loopback nothing may be lost.
    """
    for device in devices:
        device.mail.receipts.clear()
    count = await steadily(pace, lambda n: devices[n % len(devices)].send_letter())
    await until(lambda: not any(d.mail.waiting for d in devices), f"receipts of {count} letters", SETTLE_S)
    return [took for device in devices for took in device.mail.receipts]


async def down(devices: list[Device], pace: Pace, bus: Bus, mailbox: Mailbox) -> list[float]:
    """Assignments in turn to each device.

    Returns:
        Seconds from before the signature until the inbox has it on disk, one per letter.

    Raises:
        BenchError: if one never arrived.
    """
    posted: dict[str, tuple[Device, float]] = {}
    posting: list[asyncio.Task[None]] = []

    def post(number: int) -> None:
        device = devices[number % len(devices)]
        draft = assignment(device.address, number)
        posted[draft.letter_id] = device, time.monotonic()
        posting.append(asyncio.create_task(mailbox.post(draft, datetime.now(UTC))))

    count = await steadily(pace, post)
    await asyncio.gather(*posting)
    await bus.nc.flush()
    await until(lambda: all(i in d.mail.held for i, (d, _) in posted.items()), f"{count} assignments", SETTLE_S)
    return [device.mail.held[letter_id] - begun for letter_id, (device, begun) in posted.items()]


def assignment(address: Address, number: int) -> Draft:
    """An assignment as ota writes it, of a model of its own, so that none supersedes another."""
    now = datetime.now(UTC)
    model = f"model-{number}"
    data = Assign(
        model=model,
        target=f"models/{model}/1.0.0/model.onnx",
        version="1.0.0",
        sha256=hashlib.sha256(model.encode()).hexdigest(),
        length=1_048_576,
        seq=1,
        action="install",
        rollout=str(ULID()),
        wave=0,
        deadline=now + timedelta(hours=1),
    )
    return Draft(
        kind="assign",
        address=address,
        data=data,
        letter_id=str(ULID()),
        slot=model,
        revision=number + 1,
        expires=now + timedelta(hours=1),
    )


async def run(pace: Pace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Three phases, one after the other.

    Returns:
        The figures, and counts that show that nothing was left out.
    """
    async with (
        state_folder(tls=True) as (state, settings),
        started(state, SERVICES),
        on_bus(state, settings, "ota") as bus,
        connected(state, settings, pace.devices, state.root) as devices,
    ):
        say(f"{len(devices)} devices are connected; letters up at {pace.per_s:.0f}/s for {pace.seconds:.0f} s")
        receipts = await up(devices, pace)
        say(f"the same from {pace.busy_devices} devices, whose receipts are coalesced")
        coalesced = await up(devices[: pace.busy_devices], pace)
        say("assignments down")
        key = read_letter_key(state.service_key("ota"))
        mailbox = Mailbox(bus.js, "ota", settings.platform, key.signer, key.generation)
        held = await down(devices, pace, bus, mailbox)

        def left() -> int:
            return int(metric(settings, "courier", "causeway_mailbox_letters"))

        await until(lambda: not left(), "the courier to drop letters that devices hold", SETTLE_S)
    figures = {
        f"{name}_p{percent}_ms": round(1_000 * percentile(values, percent), 2)
        for name, values in (("receipt", receipts), ("down", held), ("receipt_coalesced", coalesced))
        for percent in (50, 99)
    }
    counts = {"letters": len(receipts), "letters_coalesced": len(coalesced), "assignments": len(held)}
    return figures | {"coalescing_ms": COALESCING_MS}, {"counts": counts}


def main() -> None:
    """Command line."""
    parser = arguments("roundtrip", __doc__ or "")
    parser.add_argument("--rate", type=float, default=100.0, help="letters per second (default: 100)")
    parser.add_argument("--seconds", type=float, help="length of each phase (default: 30, quick 5)")
    options = parser.parse_args()
    pace = Pace(50, 5, options.rate, options.seconds or (5.0 if options.quick else 30.0))
    targets = (
        Target("receipt_p99_ms", 100 + COALESCING_MS, at_least=False),
        Target("receipt_coalesced_p99_ms", 100 + COALESCING_MS, at_least=False),
        Target("down_p99_ms", 100, at_least=False),
    )
    parameters = {
        "devices": pace.devices,
        "busy_devices": pace.busy_devices,
        "per_s": pace.per_s,
        "seconds": pace.seconds,
        "quick": options.quick,
        "tls": True,
    }
    conduct("roundtrip", run(pace), targets, parameters=parameters, as_json=options.json)


if __name__ == "__main__":
    main()
