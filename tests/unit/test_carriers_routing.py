from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from edge_runtime.carriers.ages import Moment, elapsed_s
from edge_runtime.carriers.routing import (
    ORIGIN_SHARE,
    UNVERIFIED_SHARE,
    Carried,
    Meeting,
    Room,
    Share,
    admit,
    offers,
    share,
    to_hand_in,
)
from schemas.bundles import MAX_COPIES, MAX_HOPS, MAX_LIFETIME_S
from schemas.events import LANES

ME, PEER = "/fleets/home/devices/me", "/fleets/home/devices/peer"
STRANGER = Meeting(PEER, gateway=False, linked=False)
GATEWAY = Meeting(PEER, gateway=True, linked=False)


def carried(**changes: object) -> Carried:
    plain = Carried(
        key=(str(ULID()), "mark"),
        origin="/fleets/home/devices/far",
        destination="/platform",
        priority="normal",
        lifetime_s=3_600,
        hops=1,
        copies=4,
        age_s=10.0,
        bytes=1_000,
        giver=PEER,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("copies", "given_", "kept"), [(4, 2, 2), (3, 1, 2), (2, 1, 1)])
def test_a_stranger_gets_half(copies: int, given_: int, kept: int) -> None:
    assert share(carried(copies=copies), STRANGER) == Share(given_, kept, drop=False)


@pytest.mark.parametrize("copies", [0, 1])
def test_the_last_copy_waits_for_the_destination_or_a_gateway(copies: int) -> None:
    last = carried(copies=copies)
    assert share(last, STRANGER) is None
    assert share(last, GATEWAY) == Share(copies, 0, drop=True)
    assert share(last, replace(GATEWAY, linked=True)) is None, "its own link is nearer"
    down = replace(last, origin="/services/courier", destination=PEER)
    assert share(down, STRANGER) == Share(copies, 0, drop=True)
    assert share(replace(down, destination=ME), GATEWAY) is None


def test_nothing_goes_back_to_its_origin_or_beyond_its_life_and_hops() -> None:
    assert share(carried(origin=PEER), GATEWAY) is None
    assert share(carried(hops=MAX_HOPS), GATEWAY) is None
    assert share(carried(hops=MAX_HOPS - 1), GATEWAY) is not None
    assert share(carried(age_s=3_600.0), GATEWAY) is None


def test_own_ones_go_first_then_the_urgent_then_the_old() -> None:
    bulk = carried(priority="bulk", age_s=900.0)
    young, old = carried(age_s=1.0), carried(age_s=100.0)
    control = carried(priority="control", age_s=0.0)
    own = carried(priority="bulk", own=True, origin=ME)
    held = [bulk, young, old, control, own]
    assert offers(held, STRANGER, has=set()) == [c.key for c in (own, control, old, young, bulk)]
    assert offers(held, STRANGER, has={old.key}, done={bulk.label.name}) == [c.key for c in (own, control, young)]
    assert to_hand_in(held) == [c.key for c in (control, old, young, bulk)]


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["spray", "gateway", "end"])),
        max_size=40,
    )
)
def test_copies_never_grow_whoever_meets_whom(meetings: list[tuple[bool, str]]) -> None:
    """All holders follow `share`; the sum of copies stays within 4, and no hop is above 7."""
    holders = [carried(copies=MAX_COPIES, hops=0)]
    for first, kind in meetings:
        if not holders:
            break
        giver = holders.pop(0 if first else -1)
        meeting = Meeting(giver.destination if kind == "end" else PEER, gateway=kind == "gateway", linked=False)
        granted = share(giver, meeting)
        if granted is None:
            holders.append(giver)
            continue
        assert granted.given + granted.kept == giver.copies
        if kind != "end":
            holders.append(replace(giver, copies=granted.given, hops=giver.hops + 1))
        if not granted.drop:
            holders.append(replace(giver, copies=granted.kept))
        assert sum(holder.copies for holder in holders) <= MAX_COPIES
        assert all(holder.hops <= MAX_HOPS for holder in holders)


ROOM = Room(bytes=10_000, fragments=20)


def test_one_origin_cannot_fill_the_room() -> None:
    same = [carried() for _ in range(2)]
    assert admit(carried(), same, ROOM).taken is False
    assert admit(carried(origin="/fleets/home/devices/other", giver="x"), same, ROOM).taken


def test_one_giver_cannot_fill_the_room_by_inventing_origins() -> None:
    many = [carried(origin=f"/fleets/home/devices/d{n}", bytes=1_000) for n in range(5)]
    assert admit(carried(origin="/fleets/home/devices/new"), many, ROOM).taken is False
    assert admit(carried(origin="/fleets/home/devices/new", giver="other"), many, ROOM).taken


def test_what_is_expired_goes_first_then_the_least_urgent_of_the_biggest_origin() -> None:
    big = [carried(origin="/fleets/home/devices/big", giver="a", priority="bulk", age_s=float(n)) for n in range(6)]
    small = [carried(origin=f"/fleets/home/devices/s{n}", giver=f"b{n}") for n in range(4)]
    new = carried(origin="/fleets/home/devices/new", giver="c")
    admitted = admit(new, [*big, *small], ROOM)
    assert admitted.taken
    assert admitted.evicted == (big[5].key,), "the oldest of it"
    dead = replace(small[0], age_s=9_999.0)
    assert admit(new, [*big, dead, *small[1:]], ROOM).evicted == (dead.key,)


def test_something_more_urgent_is_never_pushed_out() -> None:
    held = [carried(origin=f"/fleets/home/devices/d{n}", giver=f"g{n}", priority="control") for n in range(10)]
    refused = admit(carried(giver="new", origin="/fleets/home/devices/new"), held, ROOM)
    assert refused.taken is False
    assert refused.evicted == ()
    urgent = carried(giver="new", origin="/fleets/home/devices/new", priority="control")
    assert admit(urgent, held, ROOM).taken


def doubtful(**changes: object) -> Carried:
    return carried(**({"verified": False, "bytes": 100, "origin": f"/fleets/home/devices/d{ULID()}"} | changes))


def flood(*givers: str, **changes: object) -> list[Carried]:
    """What carriers hold after these have given all that is taken of them."""
    held: list[Carried] = []
    for number in range(400):
        new = doubtful(giver=givers[number % len(givers)], **changes)
        admitted = admit(new, held, Room(10_000, 1_000))
        held = [c for c in held if c.key not in admitted.evicted] + [new] * admitted.taken
    return held


def test_two_forgers_of_urgent_rubbish_fill_no_more_than_the_share_of_what_nobody_can_check() -> None:
    room = Room(10_000, 1_000)
    rubbish = flood("mallory", "eve", priority="control")
    assert sum(c.bytes for c in rubbish) == room.bytes / 4
    genuine = [carried(origin=f"/fleets/home/devices/o{n}", giver=f"g{n}", priority="bulk") for n in range(9)]
    held = rubbish
    for new in genuine:
        admitted = admit(new, held, room)
        assert admitted.taken
        held = [c for c in held if c.key not in admitted.evicted] + [new]
    assert set(genuine) <= set(held), "rubbish goes for what is genuine, however urgent it calls itself"
    assert all(not c.verified for c in rubbish if c not in held)
    assert admit(doubtful(priority="control", giver="mallory"), held, room).evicted == ()


def test_who_forges_leaves_room_for_what_others_bring_that_nobody_can_check() -> None:
    rubbish = flood("mallory", "eve", priority="control")
    honest = doubtful(giver="ann", priority="bulk")
    admitted = admit(honest, rubbish, Room(10_000, 1_000))
    assert admitted.taken
    held = [c for c in rubbish if c.key not in admitted.evicted] + [honest]
    for _ in range(50):
        more = admit(doubtful(giver="mallory", priority="control"), held, Room(10_000, 1_000))
        assert honest.key not in more.evicted
        assert not more.taken


def test_rubbish_that_lies_in_front_on_a_stick_takes_nothing_of_what_is_genuine_there() -> None:
    room = Room(10_000, 1_000)
    held = flood("folder")
    assert held
    genuine = [carried(origin=f"/fleets/home/devices/o{n}", giver="folder", bytes=500) for n in range(10)]
    for new in genuine:
        admitted = admit(new, held, room)
        assert admitted.taken
        held = [c for c in held if c.key not in admitted.evicted] + [new]
    assert not admit(carried(origin="/fleets/home/devices/o", giver="folder"), held, room).taken, "half for one giver"


def test_many_small_fragments_count_as_much_as_few_large_ones() -> None:
    room = Room(100_000, 40)
    held = [doubtful(giver="mallory", bytes=1) for _ in range(10)]
    assert not admit(doubtful(giver="mallory", bytes=1), held, room).taken
    for _ in range(20):
        new = doubtful(giver="ann", bytes=2_000)
        admitted = admit(new, held, room)
        held = [c for c in held if c.key not in admitted.evicted] + [new] * admitted.taken
    assert sum(c.giver == "ann" for c in held) == 5, "half of the places that such fragments have"


def test_rubbish_in_the_name_of_an_origin_does_not_use_up_its_quota() -> None:
    rubbish = flood("mallory", origin="/fleets/home/devices/ann")
    assert admit(carried(origin="/fleets/home/devices/ann", giver="bob"), rubbish, Room(10_000, 1_000)).taken


@given(
    st.lists(
        st.builds(
            carried,
            origin=st.sampled_from([f"/fleets/home/devices/d{n}" for n in range(4)]),
            giver=st.sampled_from(["a", "b", "c"]),
            priority=st.sampled_from(LANES),
            bytes=st.integers(1, 3_000),
            age_s=st.floats(0, 4_000),
            own=st.booleans(),
            verified=st.booleans(),
            key=st.integers(0, 2**60).map(lambda n: (str(ULID.from_int(n)), "mark")),
        ),
        max_size=60,
        unique_by=lambda c: c.key,
    )
)
def test_the_room_is_never_exceeded(incoming: list[Carried]) -> None:
    held: list[Carried] = []
    for new in incoming:
        if new.own:
            held.append(new)
            continue
        admitted = admit(new, held, ROOM)
        gone = [c for c in held if c.key in admitted.evicted]
        assert not any(c.own for c in gone), "own bundles have their own bound"
        assert new.verified or not any(c.verified and not c.expired for c in gone)
        assert admitted.taken or all(c.expired for c in gone), "nothing goes for one that is not taken"
        held = [c for c in held if c.key not in admitted.evicted]
        if admitted.taken:
            held.append(new)
        others = [c for c in held if not c.own]
        assert sum(c.bytes for c in others) <= ROOM.bytes
        assert len(others) <= ROOM.fragments
        for origin in {c.origin for c in others}:
            genuine = [c.bytes for c in others if c.origin == origin and c.verified]
            assert sum(genuine) <= ROOM.bytes * ORIGIN_SHARE
        assert sum(c.bytes for c in others if not c.verified) <= ROOM.bytes * UNVERIFIED_SHARE


def test_time_counts_while_the_machine_runs_and_by_the_clock_over_a_restart() -> None:
    then = Moment("a", 100.0, 1_000_000.0)
    assert elapsed_s(then, Moment("a", 160.0, 5.0)) == 60.0, "a clock that was set back says nothing"
    assert elapsed_s(then, Moment("a", 90.0, 1_000_000.0)) == 0.0
    assert elapsed_s(then, Moment("b", 5.0, 1_003_600.0)) == 3_600.0
    assert elapsed_s(then, Moment("b", 5.0, 900_000.0)) == 0.0
    assert elapsed_s(then, Moment("b", 5.0, 1_000_000.0 + 2 * MAX_LIFETIME_S)) == 0.0, "1970 was left"
