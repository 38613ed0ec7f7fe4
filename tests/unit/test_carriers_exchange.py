"""Devices meet in any order, connections break at any frame: copies never grow, nothing is lost, each exchange ends."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.carriers import exchange as module
from edge_runtime.carriers.exchange import Exchange
from edge_runtime.carriers.frames import (
    ANSWER,
    END,
    FRAGMENT,
    MAX_PROOFS,
    RELEASE,
    SUMMARY,
    Answer,
    ExchangeError,
    Release,
    Summary,
)
from edge_runtime.carriers.names import key_of
from edge_runtime.carriers.port import MAX_FRAME_BYTES, Limits
from schemas.bundles import MAX_COPIES, MAX_HOPS, Contents
from tests.support.carriers import Realm, Traveller, letters_of, meet, pump

NAMES = "abcd"
MEMORY = Path("/dev/shm")
"""Power cuts are not what this is about, and fsync is slow."""


def copies_of(travellers: list[Traveller]) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for traveller in travellers:
        for one in traveller.store.carried():
            found[one.key] = found.get(one.key, 0) + one.copies
    return found


def test_letters_reach_the_platform_through_a_device_that_never_met_it_and_one_that_does(
    realm: Realm, tmp_path: Path
) -> None:
    a, b, gateway = (Traveller(realm, tmp_path / name, name) for name in ("a", "b", "gw"))
    said = [a.say(f"letter {n}") for n in range(3)]
    meet(a, b)
    gateway.linked = True
    meet(b, gateway)
    (found,) = [
        letters_of(realm.open(parcels))
        for parcels in gateway.bundles().values()
        if parcels[0].head.origin.endswith("/a")
    ]
    assert [letter.id for letter in found] == said
    assert [letter.sequence for letter in found] == [1, 2, 3]
    for traveller in (a, b, gateway):
        traveller.close()


def test_a_second_meeting_repeats_nothing(pair: tuple[Traveller, Traveller]) -> None:
    a, b = pair
    a.say()
    first = meet(a, b)
    again = meet(a, b)
    assert first > again == 4, "two summaries and two ends"


steps = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.none() | st.integers(0, 14),
        st.sampled_from(["meet", "say", "link", "restart"]),
    ),
    max_size=14,
)


@given(steps)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_copies_never_grow_and_every_exchange_ends(plan: list[tuple[str, str, int | None, str]]) -> None:
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        realm = Realm()
        travellers = {name: Traveller(realm, Path(folder) / name, name) for name in NAMES}
        travellers["a"].say("first")
        try:
            for one, other, cut, what in plan:
                if what == "say":
                    travellers[one].say(f"from {one}")
                elif what == "link":
                    travellers[one].linked = not travellers[one].linked
                elif what == "restart":
                    travellers[one].restart()
                elif one != other:
                    meet(travellers[one], travellers[other], cut=cut)
                everybody = list(travellers.values())
                assert all(copies <= MAX_COPIES for copies in copies_of(everybody).values())
                assert all(c.hops <= MAX_HOPS for t in everybody for c in t.store.carried())
        finally:
            for traveller in travellers.values():
                traveller.close()


@pytest.mark.parametrize("gateway", [False, True])
def test_a_connection_lost_at_any_frame_harms_nothing(gateway: bool, realm: Realm, tmp_path: Path) -> None:
    """After any cut: what the origin gave away is elsewhere, and the next meeting brings the rest."""
    whole, cut = None, 0
    while whole is None or cut <= whole:
        a, b = Traveller(realm, tmp_path / f"a{cut}", "a"), Traveller(realm, tmp_path / f"b{cut}", "b")
        b.linked = gateway
        a.say("one")
        b.custodian.packer.pack()
        for fragment in a.bundles().values():
            assert fragment
        meet(a, b, cut=cut)
        held = {one.key for one in [*a.store.carried(), *b.store.carried()] if one.origin == a.address.source}
        assert held, f"lost at frame {cut}"
        assert all(copies <= MAX_COPIES for copies in copies_of([a, b]).values())
        a.restart()
        b.restart()
        frames = meet(a, b)
        if whole is None:
            whole = frames
        carried = [one for one in b.store.carried() if one.origin == a.address.source]
        assert carried, f"not delivered after a cut at frame {cut}"
        assert [letter.data.message for letter in letters_of(realm.open(b.store.fragments_of(carried[0].key[0])))] == [
            "one"
        ]
        a.close()
        b.close()
        cut += 1
    assert cut > 6


def test_more_than_one_meeting_has_room_for_is_brought_by_the_next(pair: tuple[Traveller, Traveller]) -> None:
    a, b = pair
    for n in range(12):
        a.say(f"{n}: " + "".join(chr(33 + (n * i * i + i) % 90) for i in range(480)))
        a.custodian.packer.pack(urgent=True)
    total = len(a.store.carried())
    assert total > 1
    small = Limits(fragments=1, bytes=1 << 20)
    for meetings in range(1, total + 1):
        meet(a, b, limits=small)
        mine = [one for one in b.store.carried() if one.origin == a.address.source]
        assert len(mine) == meetings


def introduced(one: Traveller, other: Traveller) -> Exchange:
    """An exchange of `one` that has heard the summary of `other`."""
    made = one.custodian.meet(other.address, other.identity.public_key)
    made.begin()
    for frame in other.custodian.meet(one.address).begin():
        made.receive(frame)
    return made


def test_whoever_breaks_the_protocol_is_left(pair: tuple[Traveller, Traveller], realm: Realm) -> None:
    a, b = pair
    a.say()
    (summary,) = b.custodian.meet(a.address).begin()
    told = Summary.read(summary[1:])
    early = a.custodian.meet(b.address)
    early.begin()
    bad_firsts = [
        END,
        FRAGMENT + b"x",
        SUMMARY,
        SUMMARY + b"{}",
        SUMMARY + told.model_copy(update={"device": "mallory"}).write(),
        SUMMARY + told.model_copy(update={"platform": Realm().platform}).write(),
        b"",
        bytes(MAX_FRAME_BYTES + 1),
    ]
    for frame in bad_firsts:
        with pytest.raises(ExchangeError):
            early.receive(frame)
    (parcel,) = realm.answer(b, Contents())
    unknown = dict(zip(("id", "mark"), key_of(parcel), strict=True))
    for frame in (
        b"?",
        FRAGMENT + b"CWB1",
        FRAGMENT + parcel.write()[:-1],
        ANSWER + Answer(verdict="kept", **unknown).write(),
        RELEASE + Release(copies=4, **unknown).write(),
        RELEASE + b'{"copies": 5}',
    ):
        with pytest.raises(ExchangeError):
            introduced(a, b).receive(frame)
    ended = introduced(a, b)
    ended.receive(END)
    with pytest.raises(ExchangeError):
        ended.receive(END)


def test_a_release_is_taken_once(pair: tuple[Traveller, Traveller], realm: Realm, tmp_path: Path) -> None:
    a, b = pair
    c = Traveller(realm, tmp_path / "c", "c")
    (parcel,) = realm.answer(c, Contents())
    made = introduced(a, b)
    (answer,) = made.receive(FRAGMENT + parcel.on_its_way(hops=1, copies=2, age_s=0).write())
    assert Answer.read(answer[1:]).verdict == "kept"
    assert a.store.carried()[-1].copies == 0, "nothing to spray before the release"
    release = RELEASE + Release(id=parcel.head.id, mark=key_of(parcel)[1], copies=2).write()
    made.receive(release)
    assert {one.key: one.copies for one in a.store.carried()}[key_of(parcel)] == 2
    with pytest.raises(ExchangeError):
        made.receive(release)
    c.close()


def test_a_peer_that_sends_without_end_is_left(
    pair: tuple[Traveller, Traveller], realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    made = a.custodian.meet(b.address, None, Limits(fragments=3, bytes=1 << 20))
    made.begin()
    for frame in b.custodian.meet(a.address).begin():
        made.receive(frame)
    for _ in range(3):
        (parcel,) = realm.answer(b, Contents())
        made.receive(FRAGMENT + parcel.write())
    with pytest.raises(ExchangeError) as refused:
        made.receive(FRAGMENT + parcel.write())
    assert refused.value.reason == "too_much"
    for _ in range(MAX_PROOFS):
        made.receive(b"P{}")
    with pytest.raises(ExchangeError):
        made.receive(b"P{}")


def test_the_window_bounds_what_is_on_its_way(pair: tuple[Traveller, Traveller]) -> None:
    a, b = pair
    for n in range(10):
        a.say(f"{n}")
        a.custodian.packer.pack(urgent=True)
        a.store.close_packed([])
    left, right = a.custodian.meet(b.address), b.custodian.meet(a.address)
    (summary,) = right.begin()
    left.begin()
    frames = [frame for frame in left.receive(summary) if frame[:1] == FRAGMENT]
    assert 1 <= len(frames) <= module.WINDOW
    assert pump(a.custodian.meet(b.address), b.custodian.meet(a.address)) > 0
