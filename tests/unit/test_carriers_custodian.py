"""What a custodian believes, keeps, refuses and forgets; what is packed; what survives a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_runtime.carriers.ages import Moment
from edge_runtime.carriers.frames import MAX_SUMMARY_BUNDLES, MAX_SUMMARY_DONE, SUMMARY, Summary, bits, keys
from edge_runtime.carriers.packing import ASK_AGAIN_S, MAX_OPEN, REMAKE_S, Asked, Packed, Plan, Span, Waiting, plan
from edge_runtime.carriers.port import MAX_FRAME_BYTES, Peer
from edge_runtime.carriers.store import MAX_DONE, CarriedStore
from schemas.bundles import MAX_CARRIED, Addressed, Contents, Parcel, write_bundle
from schemas.envelope import Signer
from schemas.events import PLATFORM_RECIPIENT
from schemas.registry import EventReport
from services.courier.ordering import LaneKey, Slip, rule
from tests.support.carriers import COURIER, Realm, Traveller, letters_of, meet

EPOCH = "01J00000000000000000000000"


@pytest.fixture
def realm() -> Realm:
    return Realm()


@pytest.fixture
def three(realm: Realm, tmp_path: Path) -> Iterator[list[Traveller]]:
    travellers = [Traveller(realm, tmp_path / name, name) for name in ("a", "b", "c")]
    yield travellers
    for traveller in travellers:
        traveller.close()


def peer(of: Traveller, *, key: bool = True) -> Peer:
    return Peer(of.address, key=of.identity.public_key if key else None)


def forged(realm: Realm, **changes: object) -> Parcel:
    """A fragment by somebody whom nobody knows."""
    thief = Signer.generate()
    told = Addressed(
        bundle_id="01J00000000000000000000001",
        platform=realm.platform,
        origin="/fleets/home/devices/far",
        destination=PLATFORM_RECIPIENT,
        created=datetime.now(UTC),
        lifetime_s=3_600,
        priority="normal",
    )
    label = dataclasses.replace(told, **changes)  # type: ignore[arg-type]
    seal = realm.seal.public_key().public_bytes_raw()
    (parcel,) = write_bundle(Contents(), label, seal_key=seal, signer=thief)
    return parcel.on_its_way(hops=1, copies=1, age_s=0.0)


def test_labels_that_make_no_sense_are_refused(three: list[Traveller], realm: Realm) -> None:
    a, b, _ = three
    for changes in (
        {"platform": Realm().platform},
        {"origin": COURIER},
        {"origin": "/services/ota"},
        {"destination": b.address.source},
        {"destination": a.address.source},
        {"origin": b.address.source},
    ):
        assert a.custodian.take(forged(realm, **changes), peer(b)) == "refused", changes
    old = forged(realm).on_its_way(hops=1, copies=1, age_s=3_600.0)
    assert a.custodian.take(old, peer(b)) == "refused"
    assert a.custodian.take(forged(realm, origin=a.address.source), peer(b)) == "held", "one's own comes back"
    assert a.store.carried() == []
    assert a.custodian.take(forged(realm), peer(b)) == "kept", "the courier will see whether it is genuine"


def test_the_courier_is_verified_where_its_key_is_known(three: list[Traveller], realm: Realm) -> None:
    a, b, c = three
    to_c = realm.answer(c, Contents())
    assert [a.custodian.take(parcel, peer(b)) for parcel in to_c] == ["kept"]
    impostor = Signer.from_seed(realm.signers["courier"].seed)
    broken = realm.answer(c, Contents(), signer=realm.signers["ota"])
    assert [a.custodian.take(parcel, peer(b)) for parcel in broken] == ["refused"], "ota may not sign bundles"
    genuine = realm.answer(c, Contents(), signer=impostor)[0]
    swapped = dataclasses.replace(genuine.envelope, body=genuine.envelope.body.replace(b'"control"', b'"bulk"'))
    assert a.custodian.take(dataclasses.replace(genuine, envelope=swapped), peer(b)) == "refused"


def test_a_device_that_carries_for_nobody_still_takes_what_is_its_own(realm: Realm, tmp_path: Path) -> None:
    lonely = Traveller(realm, tmp_path / "x", "x", carry=False)
    other = Traveller(realm, tmp_path / "y", "y")
    other.say()
    meet(other, lonely)
    assert [one for one in lonely.store.carried() if not one.own] == []
    for parcel in realm.answer(lonely, Contents()):
        assert lonely.custodian.take(parcel, peer(other)) == "arrived"
    assert lonely.arrived == 1
    lonely.close()
    other.close()


def test_an_acknowledgement_frees_every_carrier_that_it_reaches(three: list[Traveller], realm: Realm) -> None:
    a, b, c = three
    a.say()
    meet(a, b)
    meet(b, c)
    bundle = next(one.key[0] for one in a.store.carried() if one.own)
    held = [t for t in three if any(one.key[0] == bundle for one in t.store.carried())]
    assert len(held) == 3
    (answer,) = realm.answer(a, Contents(), acknowledges=(bundle,))
    assert c.custodian.take(answer.on_its_way(hops=1, copies=1, age_s=0), peer(b)) == "kept"
    assert bundle not in {one.key[0] for one in c.store.carried()}
    meet(c, b)
    assert bundle not in {one.key[0] for one in b.store.carried()}, "the courier's word travels on as a proof"
    meet(b, a)
    assert bundle not in {one.key[0] for one in a.store.carried()}
    assert bundle not in {packed.id for packed in a.store.packed()}


def test_a_peer_cannot_declare_others_bundles_done(three: list[Traveller], realm: Realm) -> None:
    a, b, c = three
    a.say()
    meet(a, b)
    bundle = next(one.key[0] for one in b.store.carried() if one.origin == a.address.source)
    c.store.finish([bundle])
    meet(c, b)
    assert bundle in {one.key[0] for one in b.store.carried()}, "without the courier's proof it stays"
    c.custodian.prove(b"{}")
    (fake,) = realm.answer(a, Contents(), acknowledges=(bundle,), signer=Signer.generate())
    b.custodian.prove(fake.head_bytes)
    assert bundle in {one.key[0] for one in b.store.carried()}
    # The destination itself is believed.
    (down,) = realm.answer(c, Contents())
    b.custodian.down(down.write())
    c.store.finish([down.head.id])
    meet(b, c)
    assert down.head.id not in {one.key[0] for one in b.store.carried()}


def test_what_is_delivered_leaves_custody_and_is_not_taken_again(three: list[Traveller], realm: Realm) -> None:
    a, _, c = three
    (down,) = realm.answer(c, Contents())
    a.custodian.down(down.write())
    assert a.store.carried()[0].copies == 4
    meet(a, c)
    assert c.store.whole(c.address.source) == [down.head.id]
    assert down.key not in {one.key for one in a.store.carried()}
    a.custodian.down(down.write())
    assert down.key not in {one.key for one in a.store.carried()}


def test_forged_arrivals_do_not_keep_the_genuine_out(
    realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.carriers.custodian.MAX_ARRIVING", 3)
    a, b = Traveller(realm, tmp_path / "a", "a"), Traveller(realm, tmp_path / "b", "b")
    for n in range(5):
        fake = forged(realm, origin=COURIER, destination=a.address.source, bundle_id=f"01J0000000000000000000010{n}")
        assert a.custodian.take(fake, peer(b)) == ("arrived" if n < 3 else "full")
    (genuine,) = realm.answer(a, Contents())
    assert a.custodian.take(genuine, peer(b)) == "arrived"
    assert len(a.store.carried()) == 3
    a.close()
    b.close()


def test_a_restart_forgets_nothing_and_time_goes_on(realm: Realm, tmp_path: Path) -> None:
    now = [Moment("boot-1", 100.0, 1_000_000.0)]
    target = Traveller(realm, tmp_path / "t", "t")
    (down,) = realm.answer(target, Contents(), lifetime_s=10_000)
    path = tmp_path / "carriers.db"
    store = CarriedStore(path, lambda: now[0])
    store.add([down.on_its_way(hops=2, copies=3, age_s=50.0)], copies=3, giver="somebody")
    store.let_go([("01J00000000000000000000009", 3)])
    store.finish(["01J00000000000000000000008"], ("01J00000000000000000000007", b"head"))
    now[0] = Moment("boot-1", 160.0, 1_000_060.0)
    assert store.carried()[0].age_s == 110.0
    store.close()
    now[0] = Moment("boot-2", 5.0, 1_003_600.0)
    store = CarriedStore(path, lambda: now[0])
    (kept,) = store.carried()
    assert (kept.age_s, kept.copies, kept.hops, kept.giver) == (3_650.0, 3, 2, "somebody")
    found = store.load(down.key)
    assert found is not None
    assert found.way.age_s == 3_650.0
    assert found.payload == down.payload
    assert store.was_seen(("01J00000000000000000000009", 3))
    assert store.is_done("01J00000000000000000000008")
    assert store.proofs(["01J00000000000000000000008"]) == [b"head"]
    now[0] = Moment("boot-2", 10_000.0, 1_013_600.0)
    assert store.carried()[0].expired
    store.close()
    target.close()


def test_memory_of_what_is_done_is_bounded(tmp_path: Path) -> None:
    store = CarriedStore(tmp_path / "carriers.db")
    names = [f"01J{n:023d}" for n in range(MAX_DONE + 10)]
    store.finish(names)
    assert store.done(10**6) == names[:9:-1]
    store.close()


def test_the_same_letters_are_packed_once(three: list[Traveller], realm: Realm) -> None:
    a, b, c = three
    a.say("one")
    meet(a, b)
    bundles = [one.key[0] for one in a.store.carried()]
    meet(a, c)
    assert [one.key[0] for one in a.store.carried() if one.own] == [key for key in bundles if a.bundles().get(key)][:1]
    a.say("two")
    a.custodian.packer.pack()
    assert len(a.store.packed()) == 1, "too soon for another"
    a.custodian.packer.pack(urgent=True)
    first, second = a.store.packed()
    assert first.spans["normal"] == Span(1, 1)
    assert second.spans["normal"] == Span(2, 2)
    opened = realm.open(a.store.fragments_of(second.id))
    assert [letter.data.message for letter in letters_of(opened)] == ["two"]
    assert opened.hello is not None
    assert opened.hello.session == a.inbox.fact("carried_session")
    a.custodian.packer.pack(anew=True, urgent=True)
    (only,) = a.store.packed()
    assert only.spans["normal"] == Span(1, 2)


def test_letters_go_in_the_order_of_their_lanes_and_their_places(three: list[Traveller], realm: Realm) -> None:
    a = three[0]
    for n in range(70):
        a.say(f"normal {n}")
    a.say("bulk", "bulk")
    a.say("urgent", "control")
    a.custodian.packer.pack()
    (parcels,) = a.bundles().values()
    found = letters_of(realm.open(parcels))
    assert [letter.lane for letter in found] == ["control", *["normal"] * 70, "bulk"]
    assert [letter.sequence for letter in found if letter.lane == "normal"] == list(range(1, 71))
    assert parcels[0].head.priority == "control"


def test_more_than_one_bundle_holds_goes_into_several_and_then_waits(three: list[Traveller], realm: Realm) -> None:
    a, b, _ = three
    for n in range(MAX_OPEN * MAX_CARRIED + 10):
        a.say(f"{n}")
    assert a.custodian.packer.pack() == MAX_OPEN
    made = [packed.id for packed in a.store.packed()]
    assert a.custodian.packer.pack(urgent=True) == 0, "the same letters are not packed again for the sake of the last"
    meet(a, b)
    opened = [realm.open(parcels) for parcels in b.bundles().values() if parcels[0].head.id in made]
    found = sorted(letter.sequence for contents in opened for letter in letters_of(contents))
    assert found == list(range(1, MAX_OPEN * MAX_CARRIED + 1))
    a.outbox.receipt({"normal": MAX_CARRIED})
    assert a.custodian.packer.pack(urgent=True) == 1
    assert a.store.packed()[-1].spans["normal"].last == MAX_OPEN * MAX_CARRIED + 10


def lost_if_it_comes_alone(realm: Realm, a: Traveller) -> list[int]:
    """Sequences that the courier would skip for the sake of one open bundle, if it had no other."""
    found = []
    for packed in a.store.packed():
        letters = letters_of(realm.open(a.store.fragments_of(packed.id)))
        slips = [Slip(LaneKey("f", "d", x.epoch, x.lane), x.sequence, x.floor) for x in letters]
        found += [n for gap in rule(slips, {}).gaps for n in range(gap.first, gap.last + 1)]
    return found


def test_no_bundle_has_the_courier_skip_letters_that_another_still_brings(three: list[Traveller], realm: Realm) -> None:
    a = three[0]
    for n in range(3):
        a.say(f"{n}")
    a.custodian.packer.pack()
    for text in ("old", "new"):
        report = EventReport(name="said", severity="info", reason="test", message=text)
        a.outbox.add("event", report, "normal", latest="a")
    a.custodian.packer.pack(urgent=True)
    assert lost_if_it_comes_alone(realm, a) == [4]
    (only,) = a.store.packed()
    assert only.spans["normal"] == Span(1, 5), "somebody waits: one bundle holds all that waits"
    a.say("more")
    a.custodian.packer.pack(urgent=True)
    assert lost_if_it_comes_alone(realm, a) == [4]
    (only,) = a.store.packed()
    assert only.spans["normal"] == Span(1, 6)
    assert a.custodian.packer.pack(urgent=True) == 0, "it holds all of it"


def test_what_does_not_fit_beside_what_is_before_a_gap_waits_for_the_answer(
    three: list[Traveller], realm: Realm
) -> None:
    a = three[0]
    for n in range(MAX_CARRIED):
        a.say(f"{n}")
    for text in ("old", "new"):
        report = EventReport(name="said", severity="info", reason="test", message=text)
        a.outbox.add("event", report, "normal", latest="a")
    for _ in range(2):
        a.custodian.packer.pack(urgent=True)
        assert lost_if_it_comes_alone(realm, a) == []
        assert [packed.spans["normal"] for packed in a.store.packed()] == [Span(1, MAX_CARRIED)]
    a.outbox.receipt({"normal": MAX_CARRIED})
    a.custodian.packer.pack(urgent=True)
    (only,) = a.store.packed()
    assert only.spans["normal"] == Span(MAX_CARRIED + 1, MAX_CARRIED + 2)


def test_what_is_receipted_is_not_packed_and_its_bundle_is_closed(three: list[Traveller]) -> None:
    a = three[0]
    a.say("one")
    a.custodian.packer.pack()
    a.outbox.receipt({"normal": 1})
    a.custodian.packer.tidy(linked=False)
    assert a.store.packed() == []
    assert a.store.carried() == []


def test_without_a_seal_key_of_the_courier_nothing_is_packed_and_it_says_so(realm: Realm, tmp_path: Path) -> None:
    a = Traveller(realm, tmp_path / "a", "a")
    realm.publish(a.folder.root, but="courier")
    a.restart()
    a.say()
    assert a.custodian.packer.pack(urgent=True) == 0
    assert a.custodian.packer.problem is not None
    a.close()


def packed(
    first: int, last: int, age_s: float = 60.0, number: int = 0, epoch: str = EPOCH, *, full: bool = False
) -> Packed:
    return Packed(f"01J000000000000000000000{number:02d}", epoch, {"normal": Span(first, last)}, "told", age_s, full)


WAITING = Waiting(EPOCH, {"normal": (10, 2)})


@pytest.mark.parametrize(
    ("opened", "close", "above"),
    [
        ([], 0, {"normal": 2}),
        ([packed(3, 10)], 0, None),
        ([packed(3, 8)], 0, {"normal": 8}),
        ([packed(1, 2)], 1, {"normal": 2}),
        ([packed(3, 10, epoch="01J00000000000000000000001")], 1, {"normal": 2}),
        ([packed(3, 10, age_s=REMAKE_S)], 1, {"normal": 2}),
        ([packed(5, 10)], 1, {"normal": 2}),
        ([packed(3 + n, 3 + n, number=n) for n in range(MAX_OPEN)], MAX_OPEN, {"normal": 2}),
        ([packed(3 + n, 3 + n, number=n, full=not n) for n in range(MAX_OPEN)], MAX_OPEN - 1, {"normal": 3}),
        ([packed(3 + n, 3 + n, number=n, full=True) for n in range(MAX_OPEN)], 0, None),
        ([packed(1, 4), packed(5, 9, number=1)], 0, {"normal": 9}),
    ],
)
def test_what_is_packed_next(opened: list[Packed], close: int, above: dict[str, int] | None) -> None:
    found = plan(opened, WAITING, "told", asked=Asked("told", 60.0))
    assert (len(found.close), found.above) == (close, above)


def test_what_is_behind_a_gap_waits_for_an_answer_and_then_for_a_bundle_of_all() -> None:
    waiting = Waiting(EPOCH, {"normal": (10, 2)}, {"normal": 5})
    behind = [packed(3, 5)]
    assert plan(behind, waiting, "told", asked=Asked("told", 60.0)) == Plan((), None)
    assert plan(behind, waiting, "told", asked=Asked("told", ASK_AGAIN_S)) == Plan((behind[0].id,), {"normal": 2})
    assert plan(behind, waiting, "told", asked=Asked("told", 1.0), urgent=True).above == {"normal": 2}
    assert plan([packed(3, 4)], waiting, "told", asked=Asked("told", 60.0)).above == {"normal": 4}
    full = [packed(3, 5, full=True)]
    assert plan(full, waiting, "told", asked=Asked("told", ASK_AGAIN_S), urgent=True) == Plan((), None)


def test_a_question_alone_is_asked_now_and_then() -> None:
    nothing = Waiting(EPOCH, {"normal": (2, 2)})
    assert plan([], nothing, "told").above == {"normal": 2}
    assert plan([], nothing, "told", asked=Asked("told", 60.0)).above is None
    assert plan([], nothing, "told", asked=Asked("told", 1_000.0)).above is not None
    assert plan([], nothing, "other", asked=Asked("told", 60.0)).above is not None, "there is news to tell"
    assert plan([], nothing, "other", asked=Asked("told", 1.0)).above is None
    assert plan([], nothing, "told", asked=Asked("told", 1.0), urgent=True).above is not None
    question = Packed(EPOCH, EPOCH, {}, "told", 60.0)
    assert plan([question], nothing, "told", asked=Asked("told", 60.0), urgent=True).above is None, "it is open still"


def test_bundles_that_newer_ones_replaced_are_let_go_by_those_who_come_by_again(three: list[Traveller]) -> None:
    a, b, _ = three
    a.say("one")
    meet(a, b)
    (old,) = [packed.id for packed in a.store.packed()]
    a.custodian.packer.pack(anew=True, urgent=True)
    meet(a, b)
    carried = {one.key[0] for one in b.store.carried() if one.origin == a.address.source}
    assert old not in carried
    assert carried == {packed.id for packed in a.store.packed()}


def test_the_platform_is_told_of_refused_letters_too(realm: Realm, tmp_path: Path) -> None:
    refused = ["01J00000000000000000000003"]
    a = Traveller(realm, tmp_path / "a", "a", refused=refused)
    a.custodian.packer.pack()
    (parcels,) = a.bundles().values()
    assert realm.open(parcels).got == refused
    a.close()


def test_a_share_goes_once_however_many_give_it_at_the_same_time(three: list[Traveller], realm: Realm) -> None:
    a, _, c = three
    (down,) = realm.answer(c, Contents())
    a.custodian.down(down.write())
    assert a.store.give(down.key, was=4, kept=2)
    assert not a.store.give(down.key, was=4, kept=2), "the other was quicker"
    assert [one.copies for one in a.store.carried()] == [2]


def test_the_longest_summary_fits_into_a_frame() -> None:
    names = [f"01J{n:023d}" for n in range(MAX_SUMMARY_BUNDLES + 50)]
    summary = Summary(
        fleet="f" * 63,
        device="d" * 63,
        platform=EPOCH,
        gateway=True,
        has=bits((name, index) for name in names for index in range(64)),
        done=names[:MAX_SUMMARY_DONE],
        room_fragments=2**53,
        room_bytes=2**53,
    )
    assert len(SUMMARY + summary.write()) <= MAX_FRAME_BYTES
    assert len(keys(summary.has)) == 64 * MAX_SUMMARY_BUNDLES
