"""The courier's part in carrying, without a server: fragments, their checks, and what is remembered of origins."""

from __future__ import annotations

import asyncio
import base64
import os
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from ulid import ULID

from causeway.bundle.pieces import Piece, places, spans
from schemas.bundles import (
    MAX_FRAGMENT_BYTES,
    Addressed,
    CarriedLetter,
    Contents,
    Parcel,
    open_bundle,
    read_parcel,
    write_bundle,
)
from schemas.courier import Clock, Hello
from schemas.depot import write_recipe
from schemas.envelope import Signer, Verifier
from schemas.errors import ContractError
from schemas.ids import Address
from services.courier.bundles.early import Early
from services.courier.bundles.fragments import MAX_CARRIERS, Arrival, Fragments, Gathering, Taken
from services.courier.bundles.opening import check_parcel, letters_of
from services.courier.bundles.origins import AGAIN_S, MAX_STORED, Origins
from services.courier.bundles.reader import BundleReader
from services.courier.bundles.unpacker import Unpacker
from services.courier.settings import CourierSettings
from services.courier.up.carried import CarriedLetter as Queued
from services.courier.up.carried import CarriedLetters, Judged
from services.kit.bus import Bus
from services.kit.devices import DeviceRecord
from services.kit.puller import Puller, PullError
from services.kit.rejects import Turnstile

PLATFORM = "01JD0000000000000000000000"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
CAM = Address("home", "cam-1")
CARRIERS = [Address("home", f"carrier-{n}") for n in range(6)]
SIGNER = Signer.generate()
SEAL = X25519PrivateKey.generate()
KEY = SEAL.public_key().public_bytes_raw()


class OneDevice:
    """Only `CAM` may speak."""

    standing = "enrolled"

    def verifier(self, address: Address) -> Verifier | None:
        return Verifier(SIGNER.public_key) if address == CAM and self.standing == "enrolled" else None

    def get(self, address: Address) -> DeviceRecord | None:
        if address != CAM:
            return None
        return DeviceRecord.model_construct(standing=self.standing)


def bundle(
    fragments: int = 1, *, origin: Address = CAM, lifetime_s: int = 3_600, bundle_id: str | None = None, **changes: str
) -> list[Parcel]:
    """A bundle of so many fragments; its contents are noise, so that they do not shrink."""
    noise = base64.b64encode(os.urandom((fragments - 1) * MAX_FRAGMENT_BYTES + 1_000))
    letters = [
        CarriedLetter(kind="event", envelope=noise[start : start + 60_000].decode())
        for start in range(0, len(noise), 60_000)
    ]
    to = Addressed(
        bundle_id=bundle_id or str(ULID()),
        platform=changes.get("platform", PLATFORM),
        origin=changes.get("origin_source", origin.source),
        destination=changes.get("destination", "/platform"),
        created=NOW,
        lifetime_s=lifetime_s,
        priority="normal",
    )
    parcels = write_bundle(Contents(letters=letters), to, seal_key=KEY, signer=SIGNER)
    assert len(parcels) == fragments
    return parcels


def take(
    fragments: Fragments,
    parcel: Parcel,
    ticket: int | None = None,
    *,
    now: float = 0.0,
    origin: Address = CAM,
    carrier: Address | None = None,
) -> Taken:
    return fragments.take(Arrival(parcel, origin, parcel.head.lifetime_s, carrier, ticket), now)


BIG = bundle(5)


@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=6))
def test_fragments_in_any_order_and_often_make_one_whole(order: list[int], again: list[int]) -> None:
    held = Fragments(100, 8, 60)
    ticket, wholes, settled = 0, [], []
    # A copy of the last one would make it whole before its time, and begin it anew.
    early = [index for index in [*order[:-1], *again] if index != order[-1]]
    for index in [*early, order[-1]]:
        ticket += 1
        taken = take(held, BIG[index], ticket)
        settled += taken.spare
        if taken.whole is not None:
            wholes.append(taken.whole)
    (whole,) = wholes
    assert len(held) == 0
    assert open_bundle(list(whole.parcels.values()), SEAL) == open_bundle(BIG, SEAL)
    # Every place in IN is settled exactly once: those of spare copies at once, the others with the bundle.
    assert sorted([*settled, *whole.tickets.values()]) == list(range(1, ticket + 1))


def test_a_letter_that_comes_again_keeps_its_place() -> None:
    held, parcels = Fragments(100, 8, 60), bundle(3)
    assert take(held, parcels[0], 7) == Taken()
    assert take(held, parcels[0], 7).spare == ()
    assert take(held, parcels[0], 9).spare == (9,)
    taken = Taken()
    for parcel in parcels[1:]:
        taken = take(held, parcel, parcel.key[1] + 20)
    assert taken.whole is not None
    assert taken.whole.tickets[0] == 7


def test_what_an_operator_brought_gets_the_place_of_a_copy_that_is_on_disk() -> None:
    held, parcels = Fragments(100, 8, 60), bundle(3)
    take(held, parcels[0])
    assert take(held, parcels[0], 7).spare == ()
    for parcel in parcels[1:]:
        taken = take(held, parcel)
    assert taken.whole is not None
    assert taken.whole.tickets == {0: 7}


def test_the_last_carriers_of_a_bundle_are_remembered() -> None:
    held, parcels = Fragments(100, 8, 60), bundle(3)
    for carrier in [*CARRIERS[:5], CARRIERS[3]]:
        take(held, parcels[0], carrier=carrier)
    for parcel in parcels[1:]:
        taken = take(held, parcel, carrier=CARRIERS[5])
    assert taken.whole is not None
    assert taken.whole.carriers == [CARRIERS[4], CARRIERS[3], CARRIERS[5]]
    assert len(taken.whole.carriers) == MAX_CARRIERS


def test_two_bundles_of_one_id_do_not_mix() -> None:
    held, name = Fragments(100, 8, 60), str(ULID())
    take(held, bundle(3, bundle_id=name)[0], 1)
    with pytest.raises(ContractError) as caught:
        take(held, bundle(5, bundle_id=name)[1], 2)
    assert caught.value.reason == "inconsistent"
    # Another device's bundle of that id is another bundle.
    assert take(held, bundle(5, bundle_id=name)[1], 3, origin=CARRIERS[0]).whole is None
    assert len(held) == 2


def test_an_incomplete_bundle_is_given_up_by_the_shorter_of_patience_and_lifetime() -> None:
    held = Fragments(100, 8, wait_s=60)
    patient, short = bundle(3), bundle(3, lifetime_s=30)
    take(held, patient[0], 1, now=100)
    take(held, short[0], 2, now=100)
    assert held.overdue(129.9) == []
    assert [gone.bundle for gone in held.overdue(130)] == [short[0].head.id]
    assert [gone.tickets for gone in held.overdue(160)] == [{0: 1}]
    assert len(held) == 0
    assert held.overdue(1e9) == []


def test_one_origin_has_few_incomplete_bundles_and_its_oldest_goes() -> None:
    held = Fragments(100, 2, 60)
    bundles = [bundle(3) for _ in range(3)]
    other = bundle(3)
    take(held, other[0], 50, origin=CARRIERS[0])
    assert take(held, bundles[0][0], 1).dropped == ()
    assert take(held, bundles[1][0], 2).dropped == ()
    (gone,) = take(held, bundles[2][0], 3).dropped
    assert gone.bundle == bundles[0][0].head.id
    assert gone.tickets == {0: 1}
    assert len(held) == 3


def test_beyond_the_bound_whoever_has_most_gives_way_and_never_the_newest() -> None:
    held = Fragments(6, 8, 60)
    greedy = bundle(5)
    for parcel in greedy[:-1]:
        take(held, parcel, parcel.key[1])
    modest = bundle(3)
    dropped = []
    for number, parcel in enumerate(modest[:-1]):
        dropped += take(held, parcel, 100 + number, origin=CARRIERS[1]).dropped
    latecomer = bundle(3)
    for parcel in latecomer[:-1]:
        dropped += take(held, parcel, 200, origin=CARRIERS[2]).dropped
    assert [gone.origin for gone in dropped] == [CAM]
    assert len(held) <= 6
    # One bundle alone may exceed what all may: it could never be completed otherwise.
    alone = Fragments(2, 8, 60)
    for parcel in greedy[:-1]:
        assert take(alone, parcel, parcel.key[1]).dropped == ()
    assert take(alone, greedy[-1], 9).whole is not None


def refusal(parcel: Parcel, devices: OneDevice | None = None, waited_s: float = 0.0) -> str:
    with pytest.raises(ContractError) as caught:
        check_parcel(parcel, devices or OneDevice(), PLATFORM, waited_s)
    return caught.value.reason


def test_a_good_fragment_has_an_origin_and_the_rest_of_its_life() -> None:
    (parcel,) = bundle(lifetime_s=100)
    aged = parcel.on_its_way(hops=3, copies=1, age_s=60)
    assert check_parcel(aged, OneDevice(), PLATFORM, waited_s=10) == (CAM, 30)
    # A clock that went back does not make it younger.
    assert check_parcel(aged, OneDevice(), PLATFORM, waited_s=-10) == (CAM, 40)


def test_fragments_are_refused_with_the_reason() -> None:
    (parcel,) = bundle(lifetime_s=100)
    assert refusal(bundle(platform=str(ULID()))[0]) == "wrong_platform"
    assert refusal(bundle(destination=CARRIERS[0].source)[0]) == "wrong_recipient"
    assert refusal(bundle(origin_source="/services/courier")[0]) == "wrong_source"
    assert refusal(bundle(origin=CARRIERS[0])[0]) == "unknown_device"
    assert refusal(parcel.on_its_way(hops=0, copies=1, age_s=100)) == "expired"
    assert refusal(parcel.on_its_way(hops=0, copies=1, age_s=50), waited_s=50) == "expired"
    revoked = OneDevice()
    revoked.standing = "revoked"
    assert refusal(parcel, revoked) == "revoked"


def test_a_forged_head_is_refused() -> None:
    to = Addressed(str(ULID()), PLATFORM, CAM.source, "/platform", NOW, 3_600, "normal")
    (forged,) = write_bundle(Contents(), to, seal_key=KEY, signer=Signer.generate())
    assert refusal(forged) == "unknown_key"
    (good,) = bundle()
    body = base64.b64encode(good.envelope.body.replace(b"3600", b"3601"))
    altered = good.head_bytes.replace(base64.b64encode(good.envelope.body), body)
    assert altered != good.head_bytes
    frame = good.write().replace(good.head_bytes, altered)
    assert refusal(read_parcel(frame)) == "bad_signature"


def test_letters_of_a_bundle_come_on_their_origins_topics() -> None:
    contents = Contents(
        letters=[
            CarriedLetter(kind="report", envelope="{1}"),
            CarriedLetter(kind="no_such_kind", envelope="{2}"),
            CarriedLetter(kind="event", envelope="{3}"),
        ]
    )
    good, bad = letters_of(contents, CAM)
    assert [letter.subject for letter in good] == ["cw.1.home.cam-1.letter.report", "cw.1.home.cam-1.letter.event"]
    ((letter, error),) = bad
    assert (letter.raw, error.reason) == (b"{2}", "bad_topic")


def hello() -> Hello:
    return Hello(
        session=str(ULID()), epoch=str(ULID()), sent={}, marks={}, agent="raw", clock=Clock(synchronised=False)
    )


def test_origins_remember_the_newest_of_everything_within_bounds() -> None:
    origins = Origins(3)
    origins.brought(CAM, CARRIERS[:2], 1.0)
    origins.brought(CAM, [CARRIERS[2], CARRIERS[0]], 2.0)
    later = 2.0 + AGAIN_S
    assert [origins.brought_by(carrier, later) for carrier in CARRIERS[:3]] == [[CAM], [], [CAM]]
    assert origins.get(CAM).carriers == (CARRIERS[1], CARRIERS[2], CARRIERS[0])
    first, second = hello(), hello()
    origins.heard(CAM, first, 10.0, now=20.0)
    origins.heard(CAM, second, 10.0, now=20.0)
    assert origins.get(CAM).hello == second
    for number in range(MAX_STORED + 2):
        origins.stored(CAM, f"bundle-{number}")
    assert len(origins.get(CAM).stored) == MAX_STORED
    assert not origins.is_stored(CAM, "bundle-1")
    assert origins.is_stored(CAM, f"bundle-{MAX_STORED + 1}")
    origins.doubt()
    assert not origins.is_stored(CAM, f"bundle-{MAX_STORED + 1}")
    assert origins.get(CAM).hello == second
    for carrier in CARRIERS[:3]:
        origins.heard(carrier, first, 10.0, now=20.0)
    assert len(origins) == 3
    assert origins.get(CAM).hello is None


def test_a_hello_that_a_carrier_brings_late_does_not_replace_a_newer_one() -> None:
    origins, old, new, newest = Origins(3), hello(), hello(), hello()
    origins.heard(CAM, new, 10.0, now=20.0)
    origins.heard(CAM, old, 9.0, now=21.0)
    assert origins.get(CAM).hello == new
    # Made while its clock stood in 2040: it holds no later than until the next one is made.
    origins.heard(CAM, old, 1e9, now=30.0)
    origins.heard(CAM, newest, 31.0, now=32.0)
    assert origins.get(CAM).hello == newest


async def test_a_group_stays_in_front_until_it_is_judged() -> None:
    queue, nudges = CarriedLetters(limit=2), []
    queue.on_put(lambda: nudges.append(1))
    waiting = [asyncio.create_task(queue.deliver([Queued("subject", b"%d" % n)])) for n in range(3)]
    await asyncio.sleep(0)
    first = queue.first()
    assert first is not None
    assert first.letters[0].raw == b"0"
    assert queue.first() is first
    assert len(nudges) == 2
    queue.judged(Judged(stored=1))
    assert await waiting[0] == Judged(stored=1)
    waiting[1].cancel()
    await asyncio.wait([waiting[1]])
    # Whoever asked is gone; the next is served.
    await asyncio.sleep(0)
    third = queue.first()
    assert third is not None
    assert third.letters[0].raw == b"2"
    queue.judged(Judged(duplicate=1))
    assert await waiting[2] == Judged(duplicate=1)
    assert queue.first() is None


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=40), st.integers(50, 120))
def test_spans_read_each_missing_piece_once_and_nothing_between(layout: list[tuple[int, bool]], limit: int) -> None:
    entries = [(index.to_bytes(32, "big"), length) for index, (length, _) in enumerate(layout)]
    pieces = list(places(write_recipe(entries)))
    assert pieces[-1].offset + pieces[-1].length == sum(length for length, _ in layout)
    missing = [piece for piece, (_, wanted) in zip(pieces, layout, strict=True) if wanted]
    runs = list(spans(missing, limit))
    assert [piece for run in runs for piece in run] == missing
    for run in runs:
        assert sum(piece.length for piece in run) == run[-1].offset + run[-1].length - run[0].offset <= limit


def test_a_piece_knows_its_place() -> None:
    assert list(places(write_recipe([(b"\1" * 32, 10), (b"\2" * 32, 5)]))) == [
        Piece("01" * 32, 0, 10),
        Piece("02" * 32, 10, 5),
    ]


def whole_of(parcels: list[Parcel], *tickets: int) -> Gathering:
    taken = Taken()
    held = Fragments(100, 8, 60)
    for parcel, ticket in zip(parcels, tickets, strict=True):
        taken = take(held, parcel, ticket)
    assert taken.whole is not None
    return taken.whole


def test_early_bundles_are_held_in_the_order_of_their_making_and_within_bounds() -> None:
    early, made = Early(5, 2), [bundle(2, bundle_id=f"01J0000000000000000000000{n}") for n in range(4)]
    assert early.put(whole_of(made[1], 3, 4)) == ()
    assert early.put(whole_of(made[0], 1, 2)) == ()
    assert [each.bundle for each in early.of(CAM)] == [made[0][0].head.id, made[1][0].head.id]
    assert (early.of(CAM), len(early)) == ([], 0)
    for n in (0, 1):
        early.put(whole_of(made[n], 2 * n, 2 * n + 1))
    assert early.put(whole_of(made[1], 2, 9)) == (3,), "another copy of it came, by other tickets"
    assert early.put(whole_of(made[2], 6, 7)) == (0, 1), "its oldest gave way"
    assert early.overdue(59.0) == ()
    assert early.overdue(60.0) == (2, 9, 6, 7)


def test_early_bundles_of_all_devices_have_a_bound() -> None:
    early = Early(3, 8)
    assert early.put(whole_of(bundle(2), 1, 2)) == ()
    assert early.put(whole_of(bundle(2), 3, 4)) == (1, 2)
    assert len(early) == 2


async def test_a_reader_in_doubt_takes_nothing_more_of_what_had_come() -> None:
    """Its numbers may name other letters once the connection is back, and an acknowledged one is gone."""
    puller = Puller(cast("Client", SimpleNamespace(new_inbox=lambda: "inbox")), "IN", "courier-bundle")
    unpacker = cast("Unpacker", SimpleNamespace(doubt=lambda: None))
    reader = BundleReader(cast("Bus", None), unpacker, cast("Turnstile", None), CourierSettings())
    reader._puller = puller
    for subject in ("inbox.1", "inbox.2"):
        await puller._receive(Msg(cast("Client", None), subject))
        if subject == "inbox.1":
            reader.doubt()
    with pytest.raises(PullError, match="doubt"):
        await puller.take(64, 5.0)
