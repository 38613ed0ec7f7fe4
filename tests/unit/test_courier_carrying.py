"""The courier's part in carrying while it runs, without a server: what it reads, what it doubts, when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from nats.aio.msg import Msg

from schemas.errors import ContractError
from services.courier.bundles.origins import Origins
from services.courier.bundles.reader import BundleReader
from services.courier.bundles.unpacker import Outcome, Unpacker
from services.courier.bundles.wiring import Bundles
from services.courier.courier import Courier
from services.courier.down.postman import Postman
from services.courier.premises import Premises
from services.courier.receipts.receipts import Receipts
from services.courier.settings import CourierSettings
from services.courier.up.carried import CarriedLetters, Judged
from services.kit.bus import Bus
from services.kit.rejects import Turnstile
from services.kit.service import Service
from tests.unit.test_courier_bundles import CAM, PLATFORM, SEAL, OneDevice, bundle


class Refusals:
    """Remembers what was refused."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, str]] = []

    async def refuse(self, subject: str, _: bytes, error: ContractError) -> None:
        self.kept.append((subject, error.reason))


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ("cw.in.bundle.home.cam-1.x", "bad_topic"),
        ("cw.in.bundle.home", "bad_topic"),
        ("cw.in.bundle.home.-", "bad_identifier"),
    ],
)
async def test_a_message_on_a_subject_of_no_device_is_refused_and_read_over(subject: str, reason: str) -> None:
    refusals = Refusals()
    reader = BundleReader(cast("Bus", None), cast("Unpacker", None), cast("Turnstile", refusals), CourierSettings())
    assert await reader._take(7, cast("Msg", SimpleNamespace(subject=subject, data=b"{}"))) == (7,)
    assert refusals.kept == [(subject, reason)]


@pytest.fixture
def carried() -> CarriedLetters:
    return CarriedLetters()


@pytest.fixture
def unpacker(carried: CarriedLetters) -> Unpacker:
    return Unpacker(
        OneDevice(),
        PLATFORM,
        SEAL,
        carried=carried,
        postman=cast("Postman", SimpleNamespace(got=lambda *_: None)),
        origins=Origins(10),
        turnstile=cast("Turnstile", Refusals()),
        answer=lambda _: None,
        settings=CourierSettings(),
    )


async def queued(carried: CarriedLetters) -> None:
    """Wait until a group is in front, to be judged."""
    put = asyncio.Event()
    carried.on_put(put.set)
    async with asyncio.timeout(5):
        while carried.first() is None:
            await put.wait()
            put.clear()


async def judged(carried: CarriedLetters, unpacker: Unpacker, verdict: Judged, *, doubted: bool) -> Outcome:
    """A bundle that the unpacker was told of; the connection may have been lost meanwhile."""
    (parcel,) = bundle()
    taking = asyncio.create_task(unpacker.take(parcel, carrier=CAM, ticket=7))
    await queued(carried)
    if doubted:
        unpacker.doubt()
    carried.judged(verdict)
    outcome = await taking
    assert unpacker._origins.is_stored(CAM, parcel.head.id) is (outcome.state == "stored" and not doubted)
    return outcome


@pytest.mark.parametrize("doubted", [False, True])
async def test_a_bundle_judged_while_the_connection_is_lost_is_not_held_by_its_old_places(
    carried: CarriedLetters, unpacker: Unpacker, doubted: bool
) -> None:
    assert (await judged(carried, unpacker, Judged(early=1), doubted=doubted)).state == "early"
    assert len(unpacker._early) == (0 if doubted else 1)


@pytest.mark.parametrize("doubted", [False, True])
async def test_a_bundle_stored_while_the_connection_is_lost_is_not_known_as_stored(
    carried: CarriedLetters, unpacker: Unpacker, doubted: bool
) -> None:
    assert (await judged(carried, unpacker, Judged(stored=1), doubted=doubted)).state == "stored"


class Tasks:
    """The part of a service that runs loops."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []
        self.bus = SimpleNamespace(on_disconnect=lambda _: None, on_reconnect=lambda _: None)
        self.waiting: set[str] = set()
        self.moved = asyncio.Event()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        self.tasks.append(asyncio.create_task(work, name=name))

    def every(self, *_: Any) -> None:
        """Nothing is due within a test."""

    def on_close(self, _: Any) -> None:
        """Nothing is closed."""

    def wait_on(self, what: str) -> None:
        self.waiting.add(what)

    def reached(self, what: str) -> None:
        self.waiting.discard(what)
        self.moved.set()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self.tasks)


def bundles(subscribe: Any, seal_key: X25519PrivateKey | None = SEAL) -> Bundles:
    bus = SimpleNamespace(nc=SimpleNamespace(subscribe=subscribe))
    key, settings = SimpleNamespace(seal_key=seal_key), CourierSettings()
    premises = SimpleNamespace(bus=bus, key=key, platform=PLATFORM, book=OneDevice(), settings=settings)
    return Bundles(
        cast("Premises", premises),
        carried=CarriedLetters(),
        postman=cast("Postman", None),
        receipts=cast("Receipts", None),
        turnstile=cast("Turnstile", None),
    )


async def test_a_courier_is_ready_once_operators_who_bring_bundles_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, open_door, verbs = asyncio.Event(), asyncio.Event(), []

    async def subscribe(subject: str, **_: Any) -> None:
        asked.set()
        await open_door.wait()
        verbs.append(subject.rsplit(".", 1)[-1])

    async def read_nothing(_: BundleReader) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(BundleReader, "run", read_nothing)
    service, never, done = Tasks(), asyncio.Event(), asyncio.Event()
    done.set()

    async def stand_by() -> None:
        await never.wait()

    part = bundles(subscribe)
    courier = Courier(
        cast("Service", service),
        lease=cast("Any", SimpleNamespace(standby=never, acquire=stand_by)),
        book=cast("Any", SimpleNamespace(follow=lambda _: asyncio.sleep(0))),
        intake=cast("Any", SimpleNamespace(serving=done, doubt=None)),
        postman=cast("Any", SimpleNamespace(loaded=done)),
        receipts=cast("Any", None),
        handlers=cast("Any", None),
        bundles=part,
        integrity=cast("Any", None),
    )
    async with asyncio.timeout(5):
        courier.start()
        part.start(cast("Service", service), done, done)
        await asked.wait()
        assert "letters" in service.waiting
        open_door.set()
        while "letters" in service.waiting:
            service.moved.clear()
            await service.moved.wait()
    assert verbs == ["bundle_import", "bundle_export", "bundle_list"]
    await service.end()


async def test_a_courier_without_a_seal_key_has_nothing_to_wait_for() -> None:
    assert bundles(None, seal_key=None).serving.is_set()
