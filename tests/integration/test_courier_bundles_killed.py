"""Bundles while couriers and the bus are killed or frozen: no fragment is forgotten, no letter stored twice."""

from __future__ import annotations

import asyncio
import signal

import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from services.kit.bus import Bus
from tests.support.carried import CarriedDevice, answered, carry, refusals, unacknowledged
from tests.support.courier_world import counter, ids, letters, start_standby
from tests.support.edge import ask
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol, in_bus


@pytest.fixture
def quick(live: LivePlatform, monkeypatch: pytest.MonkeyPatch) -> LivePlatform:
    """A courier that does not wait long."""
    monkeypatch.setenv("CAUSEWAY_COURIER_BUNDLE_ACK_WAIT_S", "2")
    return live


def test_a_bundle_whose_rest_never_comes_is_refused_and_not_forgotten(
    quick: LivePlatform, carrier: RawDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUSEWAY_COURIER_BUNDLE_WAIT_S", "3")
    away = CarriedDevice(quick, "cam-1")
    enrol(quick, away)
    quick.start_service("courier")
    parcels = away.bundle(away.enclose_much(2))
    carry(carrier, parcels[:1])
    carrier.settle()
    assert refusals(quick, away) == []
    eventually(lambda: refusals(quick, away) == ["incomplete"], "the refusal")
    eventually(lambda: unacknowledged(quick) == 0, "its place in IN to be settled")


def test_a_courier_killed_between_two_fragments_loses_none(quick: LivePlatform, carrier: RawDevice) -> None:
    away = CarriedDevice(quick, "cam-1")
    enrol(quick, away)
    quick.start_service("courier")
    parcels = away.bundle(away.enclose_much(2))
    carry(carrier, parcels[:1])
    carrier.settle()
    eventually(lambda: counter(quick, "causeway_bundle_fragments") == 1, "the first fragment to be held")
    quick.kill("courier")
    quick.start_service("courier")
    carry(carrier, parcels[1:])
    carrier.settle()
    answered(away, carrier, parcels[0].head.id)
    assert letters(quick, "sample") == ids(away, "normal", 2)
    eventually(lambda: unacknowledged(quick) == 0, "everything to be settled")


@pytest.mark.parametrize("after", [1, 60, 120])
def test_a_courier_killed_while_it_unpacks_stores_nothing_twice(
    quick: LivePlatform, carrier: RawDevice, after: int
) -> None:
    away = CarriedDevice(quick, "cam-1")
    enrol(quick, away)
    quick.start_service("courier")
    parcels = away.bundle([away.enclose() for _ in range(120)])

    async def kill_after(bus: Bus) -> None:
        seen = asyncio.Semaphore(0)

        async def saw(_: object) -> None:
            seen.release()

        await bus.js.subscribe("cw.in.event.>", stream="IN", cb=saw, config=ConsumerConfig(ack_policy=AckPolicy.NONE))
        carry(carrier, parcels)
        async with asyncio.timeout(20):
            for _ in range(after):
                await seen.acquire()
        quick.kill("courier")

    in_bus(quick, "courier", kill_after)
    assert len(letters(quick)) >= after
    quick.start_service("courier")
    carrier.settle()
    eventually(lambda: len(letters(quick)) == 120, "all letters in IN")
    eventually(lambda: unacknowledged(quick) == 0, "everything to be settled")
    assert letters(quick) == ids(away, "normal", 120)


def test_a_courier_that_lost_its_server_forgets_no_fragment(quick: LivePlatform, carrier: RawDevice) -> None:
    away = CarriedDevice(quick, "cam-1")
    enrol(quick, away)
    quick.start_service("courier")
    parcels = away.bundle(away.enclose_much(3))
    carry(carrier, parcels[:1])
    carrier.settle()
    quick.kill("nats-server")
    quick.start_bus()
    eventually(lambda: carrier.greet() and True, "the carrier to be back")
    carry(carrier, parcels[1:])
    carrier.settle()
    answered(away, carrier, parcels[0].head.id)
    assert letters(quick, "sample") == ids(away, "normal", 3)


def active(live: LivePlatform, name: str) -> bool:
    return "causeway_courier_active 1.0" in live.metrics(name)


def test_a_standby_takes_over_what_a_frozen_courier_held(
    quick: LivePlatform, carrier: RawDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = CarriedDevice(quick, "cam-1")
    enrol(quick, away)
    quick.start_service("courier")
    start_standby(quick, monkeypatch)
    parcels = away.bundle(away.enclose_much(3))
    carry(carrier, parcels[:2])
    carrier.settle()
    eventually(lambda: counter(quick, "causeway_bundle_fragments") == 2, "the fragments to be held")
    # Only the active one answers an operator; the standby takes no request away from it.
    for _ in range(8):
        assert ask(quick, "courier", "bundle_list") == []
    sleeper = quick.processes["courier"]
    sleeper.send_signal(signal.SIGSTOP)
    eventually(lambda: active(quick, "courier-2"), "the standby to take over")
    carry(carrier, parcels[2:])
    carrier.settle()
    sleeper.send_signal(signal.SIGCONT)
    answered(away, carrier, parcels[0].head.id)
    assert sleeper.wait(20) == 1
    assert letters(quick, "sample") == ids(away, "normal", 3)
    eventually(lambda: unacknowledged(quick) == 0, "everything to be settled")
