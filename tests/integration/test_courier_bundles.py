"""Letters that others carry: unpacked once, in order, whoever brings them and whatever is killed meanwhile."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from ulid import ULID

from schemas.bundles import CarriedLetter, Parcel
from schemas.depot import TrustState
from schemas.envelope import Signer
from schemas.registry import Twin
from services.courier.up.ordering import LaneKey
from services.kit.devices import DeviceRecord, Standing
from tests.support.carried import CarriedDevice, answered, brought, carry, refusals, unacknowledged
from tests.support.courier_world import counter, ids, letters, post
from tests.support.edge import ask
from tests.support.platform import LivePlatform, eventually, serving
from tests.support.raw_device import RawDevice, enrol

Make = Callable[[str], CarriedDevice]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    """A platform that no test may break for the next."""
    with serving(tmp_path_factory.mktemp("world") / "state", "depot", "registry", "courier") as live:
        yield live


@pytest.fixture
def second(world: LivePlatform) -> Iterator[RawDevice]:
    """A further one."""
    device = RawDevice(world, f"second-{ULID()}")
    enrol(world, device)
    device.connect()
    yield device
    device.close()


@pytest.fixture
def away(world: LivePlatform) -> Iterator[CarriedDevice]:
    """A device without one."""
    device = CarriedDevice(world, f"cam-{ULID()}")
    enrol(world, device)
    yield device
    device.close()


def of(device: CarriedDevice, live: LivePlatform, kind: str = "event") -> list[str]:
    """Message ids of one device's letters in IN."""
    return [name for name in letters(live, kind) if f":{device.name}:" in name]


def test_a_bundle_is_stored_in_order_and_answered_by_its_carrier(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice
) -> None:
    (held,) = post(world, away, "config", Twin(), slot="held")
    (wanted,) = post(world, away, "config", Twin(), slot="wanted")
    parcels = away.bundle([away.enclose() for _ in range(20)], got=[held])
    carry(carrier, parcels)
    answer = answered(away, carrier, parcels[0].head.id)
    assert of(away, world) == ids(away, "normal", 20)
    (receipt,) = answer.receipts()
    assert (receipt.epoch, receipt.marks) == (away.epoch, {"normal": 20})
    # What the device said that it holds is not sent again.
    assert [letter.id for letter in answer.letters("config")] == [wanted]
    assert answer.contents.trust is not None
    carrier.settle()


def test_a_carrier_that_comes_back_is_given_the_answers_again(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice
) -> None:
    carrier.greet()
    parcels = away.bundle([away.enclose()])
    carry(carrier, parcels)
    first = answered(away, carrier, parcels[0].head.id)
    carrier.letters.clear()
    carrier.session = str(ULID())
    carrier.hello()
    answer = answered(away, carrier, parcels[0].head.id)
    assert answer.receipts()[0].marks == {"normal": 1}
    # The same, so that it takes no more of a carrier's room.
    assert answer.parcel.head.id == first.parcel.head.id
    carrier.settle()


class Unsealable(CarriedDevice):
    """A device with a seal key of low order, enrolled before such keys were refused."""

    def record(self, standing: Standing = "enrolled") -> DeviceRecord:
        return super().record(standing).model_copy(update={"seal_key": base64.b64encode(bytes(32)).decode()})


def test_a_device_that_cannot_be_answered_stops_no_other_answer(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice
) -> None:
    silent = Unsealable(world, f"cam-{ULID()}")
    enrol(world, silent)
    carry(carrier, silent.bundle([silent.enclose()]))
    eventually(lambda: of(silent, world) == ids(silent, "normal", 1), "its letter in IN")
    parcels = away.bundle([away.enclose()])
    carry(carrier, parcels)
    answered(away, carrier, parcels[0].head.id)
    assert silent.answers(brought(carrier)) == []


def test_a_device_with_the_newest_trust_is_sent_none(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice
) -> None:
    away.trust = TrustState.model_validate(ask(world, "depot", "trust")["head"])
    parcels = away.bundle()
    carry(carrier, parcels)
    answer = answered(away, carrier, parcels[0].head.id)
    assert answer.contents.trust is None
    assert answer.receipts()[0].marks == {}


def test_the_same_letters_by_two_carriers_and_directly_are_stored_once(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice, second: RawDevice
) -> None:
    enclosed = [away.enclose() for _ in range(10)]
    parcels = away.bundle(enclosed)
    carry(carrier, parcels)
    first = answered(away, carrier, parcels[0].head.id)
    carry(second, parcels)
    answered(away, second, parcels[0].head.id)
    away.connect()
    for letter in enclosed:
        away.put(letter.kind, letter.envelope.encode())
    away.settle()
    # All that waits once more, in a bundle of another id.
    again = away.bundle([*enclosed, away.enclose()])
    carry(second, again)
    answer = answered(away, second, again[0].head.id)
    assert of(away, world) == ids(away, "normal", 11)
    assert answer.receipts()[0].marks == {"normal": 11}
    assert set(answer.acknowledges) == {parcels[0].head.id, again[0].head.id}
    # Whoever brought its bundles lately gets the answer, too.
    assert answered(away, carrier, again[0].head.id).parcel.head.id == answer.parcel.head.id
    assert first.parcel.head.id != answer.parcel.head.id


def test_fragments_of_one_bundle_come_by_two_carriers_in_any_order(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice, second: RawDevice
) -> None:
    parcels = away.bundle(away.enclose_much(3))
    assert len(parcels) == 3
    carry(carrier, [parcels[2]])
    carrier.settle()
    assert of(away, world, "sample") == []
    carry(second, [parcels[2], parcels[0]])
    second.settle()
    carry(carrier, [parcels[1]])
    for each in (carrier, second):
        answered(away, each, parcels[0].head.id)
    assert of(away, world, "sample") == ids(away, "normal", 3)


def test_letters_that_come_before_their_predecessors_are_not_acknowledged(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice
) -> None:
    first, second = away.enclose(), away.enclose()
    later = away.bundle([second])
    carry(carrier, later)
    answer = eventually(lambda: away.answers(brought(carrier)), "an answer")[0]
    assert (answer.acknowledges, answer.receipts()[0].marks) == ([], {})
    carry(carrier, away.bundle([first]))
    # Its carrier has let go of the bundle that came too early, so nobody need bring it again.
    assert answered(away, carrier, later[0].head.id).receipts()[0].marks == {"normal": 2}
    assert of(away, world) == ids(away, "normal", 2)
    eventually(lambda: unacknowledged(world) == 0, "everything to be settled")


def test_one_bad_letter_in_a_bundle_does_not_stop_the_rest(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice
) -> None:
    forged = away.write("event", lane="bulk", sequence=1, signer=Signer.generate()).decode()
    strange = away.write("event", lane="bulk", sequence=1).decode()
    parcels = away.bundle(
        [
            away.enclose(),
            CarriedLetter(kind="event", envelope=forged),
            CarriedLetter(kind="event", envelope="{}"),
            CarriedLetter(kind="no_such_kind", envelope=strange),
            away.enclose(),
        ]
    )
    carry(carrier, parcels)
    answer = answered(away, carrier, parcels[0].head.id)
    assert answer.receipts()[0].marks == {"normal": 2}
    assert of(away, world) == ids(away, "normal", 2)
    assert sorted(refusals(world, away)) == ["bad_envelope", "bad_topic", "unknown_key"]


def altered(parcels: list[Parcel]) -> list[Parcel]:
    """The same heads over other payloads."""
    return [replace(parcel, payload=parcel.payload[:-1] + b"?") for parcel in parcels]


def aged(parcels: list[Parcel]) -> list[Parcel]:
    return [parcel.on_its_way(hops=1, copies=1, age_s=3_600) for parcel in parcels]


BAD: dict[str, tuple[str, bool, Callable[[CarriedDevice, list[CarriedLetter]], list[Parcel]]]] = {
    "a head by another key": ("unknown_key", False, lambda d, x: d.bundle(x, signer=Signer.generate())),
    "another payload": ("wrong_digest", False, lambda d, x: altered(d.bundle(x))),
    "another platform": ("wrong_platform", False, lambda d, x: d.bundle(x, platform=str(ULID()))),
    "too old": ("expired", False, lambda d, x: aged(d.bundle(x))),
    "sealed to another key": ("wrong_seal", True, lambda d, x: d.bundle(x, seal_to=X25519PrivateKey.generate())),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_right_is_refused_with_its_reason(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice, name: str
) -> None:
    reason, proven, make = BAD[name]
    enclosed = [away.enclose()]
    carry(carrier, make(away, enclosed))
    # Before its signature held, only the carrier answers for it.
    blamed = away if proven else carrier
    eventually(lambda: refusals(world, blamed) == [reason], f"{reason} in REJECTS")
    good = away.bundle(enclosed)
    carry(carrier, good)
    answered(away, carrier, good[0].head.id)
    assert of(away, world) == ids(away, "normal", 1)
    # The carrier's own letters are all receipted: what they bring is not its fault.
    carrier.settle()


def test_a_device_that_may_not_speak_cannot_speak_through_others(world: LivePlatform, carrier: RawDevice) -> None:
    revoked = CarriedDevice(world, f"cam-{ULID()}")
    enrol(world, revoked, standing="revoked")
    carry(carrier, revoked.bundle([revoked.enclose()]))
    eventually(lambda: refusals(world, carrier) == ["revoked"], "revoked in REJECTS")
    assert of(revoked, world) == []


def test_late_letters_of_a_former_epoch_are_no_sign_of_a_clone(
    world: LivePlatform, away: CarriedDevice, carrier: RawDevice
) -> None:
    late = away.bundle([away.enclose() for _ in range(3)])
    former, away.epoch = away.epoch, str(ULID())
    away.sent.clear()
    away.connect()
    try:
        away.send()
        away.settle()
        suspected = counter(world, "causeway_clone_suspicions_total")
        carry(carrier, late)
        answered(away, carrier, late[0].head.id)
        away.send()
        away.settle()
        assert counter(world, "causeway_clone_suspicions_total") == suspected
        key = LaneKey(away.fleet, away.name, former, "normal")
        assert of(away, world) == [
            *ids(away, "normal", 1),
            *[key.message_id(n) for n in (1, 2, 3)],
            ids(away, "normal", 2)[1],
        ]
    finally:
        away.close()
