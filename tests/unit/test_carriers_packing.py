"""What is packed, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.carriers.names import key_of
from edge_runtime.carriers.packing import ASK_AGAIN_S, MAX_OPEN, REMAKE_S, Asked, Packed, Plan, Span, Waiting, plan
from schemas.bundles import MAX_CARRIED, Contents
from schemas.registry import EventReport
from services.courier.up.ordering import LaneKey, Slip, rule
from tests.support.carriers import Realm, Traveller, letters_of, meet

EPOCH = "01J00000000000000000000000"


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


def test_a_key_that_nothing_can_be_sealed_to_keeps_nothing_of_others_from_being_written(
    pair: tuple[Traveller, Traveller], stick: Path, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    (parcel,) = realm.answer(b, Contents())
    assert a.custodian.judge(parcel.on_its_way(hops=1, copies=4, age_s=0), "folder").verdict == "kept"
    a.store.own_more(key_of(parcel), 4)
    a.say()
    monkeypatch.setattr("edge_runtime.carriers.packer.courier_seal_key", lambda _: bytes(32))
    done = a.stick(stick).export(urgent=True)
    assert done.fragments == 1
    assert "nothing can be sealed" in str(done.problem)
    monkeypatch.undo()
    done = a.stick(stick).export(urgent=True)
    assert (done.fragments, done.problem) == (1, None)
