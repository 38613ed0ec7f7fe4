"""Answers to devices that speak through others, without a server: who gets which, and what one of them cannot stop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from nats.errors import NoRespondersError
from ulid import ULID

from schemas.bundles import MAX_COPIES, Parcel, read_parcel
from schemas.envelope import Signer
from schemas.ids import Address
from schemas.topics import parse_subject
from services.courier.bundles import answers as module
from services.courier.bundles.answers import Answers
from services.courier.bundles.kept import KeptAnswers
from services.courier.bundles.origins import AGAIN_S, MAX_BROUGHT, Origins
from services.courier.down.postman import Postman
from services.courier.premises import Premises
from services.courier.receipts.receipts import Receipts
from services.courier.settings import CourierSettings
from services.kit.devices import DeviceRecord
from services.kit.errors import RefusedError

CAM, OTHER = Address("home", "cam-1"), Address("home", "cam-2")
CARRIERS = [Address("home", f"carrier-{n}") for n in range(5)]
NOTHING_SEALS_TO_IT = bytes(32)


@dataclass
class World:
    """A courier's answers with a bus that remembers, and without a depot."""

    keys: dict[Address, bytes] = field(default_factory=dict)
    sent: list[tuple[Address, Parcel]] = field(default_factory=list)
    revoked: set[Address] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.origins, self.arrived = Origins(10), asyncio.Event()
        nc = SimpleNamespace(publish=self._publish, request=self._request)
        bus, key = SimpleNamespace(nc=nc), SimpleNamespace(signer=Signer.generate())
        settings = CourierSettings(answer_interval_s=0.001)
        self.answers = Answers(
            cast("Premises", SimpleNamespace(bus=bus, key=key, platform=str(ULID()), book=self, settings=settings)),
            origins=self.origins,
            postman=cast("Postman", SimpleNamespace(waiting=lambda _: [])),
            receipts=cast("Receipts", SimpleNamespace(write=lambda *_: b"{}")),
        )

    def get(self, address: Address) -> DeviceRecord | None:
        if address in CARRIERS:
            return None
        seal_key = self.keys.get(address, X25519PrivateKey.generate().public_key().public_bytes_raw())
        text, standing = base64.b64encode(seal_key).decode(), "revoked" if address in self.revoked else "enrolled"
        return cast("DeviceRecord", SimpleNamespace(address=address, standing=standing, online=False, seal_key=text))

    async def _request(self, *_: Any, **__: Any) -> None:
        raise NoRespondersError

    async def _publish(self, subject: str, raw: bytes) -> None:
        self.sent.append((parse_subject(subject).address, read_parcel(raw)))
        self.arrived.set()

    def to(self, receiver: Address) -> list[Parcel]:
        return [parcel for who, parcel in self.sent if who == receiver]

    async def until_sent(self, amount: int) -> None:
        async with asyncio.timeout(5):
            while len(self.sent) < amount:
                self.arrived.clear()
                await self.arrived.wait()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    task = asyncio.create_task(made.answers.run())
    yield made
    assert not task.done(), "the loop must outlive whatever it met"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_device_that_nothing_can_be_sealed_to_keeps_no_other_waiting(world: World) -> None:
    world.keys[CAM] = NOTHING_SEALS_TO_IT
    for device in (CAM, OTHER):
        world.origins.brought(device, CARRIERS[:1], time.monotonic())
        world.answers.ask(device)
    await world.until_sent(1)
    ((_, parcel),) = world.sent
    assert parcel.head.destination == OTHER.source


async def test_an_operator_is_told_of_it_and_keeps_what_he_brought(world: World) -> None:
    world.keys[CAM] = NOTHING_SEALS_TO_IT
    world.origins.heard(CAM, cast("Any", SimpleNamespace(session="s", epoch="e")), 0.0, now=1.0)
    assert await world.answers.receipt(CAM) is None
    with pytest.raises(RefusedError, match=r"home/cam-1.*enrol"):
        await world.answers.write(CAM, 1)


async def test_only_the_carrier_that_returns_is_sent_the_same_bundle_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    for carrier in CARRIERS[:4]:
        world.origins.brought(CAM, [carrier], now)
    world.answers.ask(CAM)
    await world.until_sent(3)
    (first,) = world.to(CARRIERS[1])
    assert world.to(CARRIERS[0]) == [], "three others brought it since"
    world.sent.clear()
    clock = itertools.count(now + 60, 0.01)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    for _ in range(3):
        world.answers.again(CARRIERS[0])
        amount = len(world.sent)
        await world.until_sent(amount + 1)
    assert {who for who, _ in world.sent} == {CARRIERS[0]}
    assert {parcel.head.id for _, parcel in world.sent} == {first.head.id}
    assert {parcel.way.copies for _, parcel in world.sent} == {MAX_COPIES // 3}
    assert all(59 < parcel.way.age_s < 70 for _, parcel in world.sent), "it lives no longer for being sent again"


async def test_a_returning_carrier_is_sent_no_more_than_it_can_take_and_the_newest_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in (CAM, OTHER):
        world.origins.brought(device, CARRIERS[:1], time.monotonic())
        world.answers.ask(device)
    await world.until_sent(2)
    size = max(len(parcel.write()) for _, parcel in world.sent)
    world.sent.clear()
    monkeypatch.setattr(module, "AGAIN_BYTES", size)
    world.answers.again(CARRIERS[0])
    # What is asked for afterwards is sent afterwards.
    world.origins.brought(CAM, CARRIERS[1:2], time.monotonic())
    await world.until_sent(1)
    world.answers.again(CARRIERS[1])
    await world.until_sent(2)
    assert [(who, parcel.head.destination) for who, parcel in world.sent] == [
        (CARRIERS[0], OTHER.source),
        (CARRIERS[1], CAM.source),
    ]


async def test_after_a_doubt_the_answer_is_made_anew_and_for_nobody_who_was_revoked(world: World) -> None:
    for device in (CAM, OTHER):
        world.origins.brought(device, CARRIERS[:1], time.monotonic())
        world.origins.stored(device, str(ULID()))
        world.answers.ask(device)
    await world.until_sent(2)
    firsts = {parcel.head.id for _, parcel in world.sent}
    world.sent.clear()
    world.origins.doubt()
    world.answers.again(CARRIERS[0])
    await world.until_sent(2)
    assert not firsts & {parcel.head.id for _, parcel in world.sent}
    assert all(parcel.head.acknowledges == [] for _, parcel in world.sent), "IN may have lost what was acknowledged"
    world.sent.clear()
    world.revoked.add(CAM)
    world.origins.brought(CAM, CARRIERS[1:2], time.monotonic())
    world.origins.brought(OTHER, CARRIERS[1:2], time.monotonic() - 1)
    world.answers.again(CARRIERS[1])
    await world.until_sent(1)
    assert [parcel.head.destination for _, parcel in world.sent] == [OTHER.source]


def parcels(size: int) -> tuple[Parcel, ...]:
    return (cast("Parcel", SimpleNamespace(write=lambda: bytes(size))),)


def test_answers_are_kept_within_bytes_and_time_one_per_device() -> None:
    kept = KeptAnswers(100)
    kept.put(CAM, parcels(60), 1.0, 0)
    kept.put(CAM, parcels(70), 2.0, 0)
    kept.put(OTHER, parcels(30), 3.0, 0)
    assert kept.size == 100
    found = kept.of(CAM, 3.0)
    assert found is not None
    assert (found.size, found.at) == (70, 2.0)
    kept.put(CARRIERS[0], parcels(1), 4.0, 0)
    assert (kept.of(CAM, 4.0), kept.size) == (None, 31), "the oldest gave way"
    assert kept.of(OTHER, 3.0 + AGAIN_S) is not None
    assert kept.of(OTHER, 3.1 + AGAIN_S) is None
    kept.put(CAM, parcels(2), 5.0 + AGAIN_S, 0)
    assert kept.size == 2
    kept.put(CAM, parcels(101), 6.0 + AGAIN_S, 0)
    assert (kept.size, kept.of(CAM, 6.0 + AGAIN_S)) == (0, None)


def pairs(origins: Origins) -> int:
    return sum(len(each) for each in origins._brought.values())


def test_what_carriers_brought_is_forgotten_in_time() -> None:
    origins = Origins(1_000)
    for carrier in CARRIERS[:2]:
        for number in range(MAX_BROUGHT + 1):
            origins.brought(Address("home", f"cam-{number}"), [carrier], float(number))
    assert len(origins.brought_by(CARRIERS[0], 0.0)) == MAX_BROUGHT
    assert origins.brought_by(CARRIERS[0], MAX_BROUGHT + AGAIN_S) == [Address("home", f"cam-{MAX_BROUGHT}")]
    origins.brought(CAM, [CARRIERS[1]], MAX_BROUGHT - 1 + AGAIN_S)
    assert pairs(origins) == 2 + 1 + MAX_BROUGHT, "of the second all but the last two are too old"
    origins.brought(CAM, [CARRIERS[2]], MAX_BROUGHT + 1 + AGAIN_S)
    assert pairs(origins) == 4, "and the first altogether"
