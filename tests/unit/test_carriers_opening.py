"""What comes out of bundles once all of their fragments are here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_runtime.carriers.names import key_of
from edge_runtime.carriers.opening import MAX_PAUSE_TURNS, Desk, Opening
from edge_runtime.carriers.port import Peer
from schemas.bundles import BUNDLE_TYPE, CarriedLetter, Contents
from schemas.envelope import Signer, parse, seal
from tests.support.carriers import Realm, Traveller


class Ear:
    """What an opening passes on."""

    def __init__(self, realm: Realm, of: Traveller) -> None:
        self._realm, self._of = realm, of
        self.heard: list[tuple[str, bytes]] = []
        self.full = False
        self.publishes = False
        self.judges = True

    async def take_trust(self, pack: bytes) -> bool:
        self.heard.append(("trust", pack))
        if self.publishes:
            self._realm.publish(self._of.folder.root)
            self._of.keyring.reload()
        return self.judges

    def take_receipt(self, raw: bytes) -> None:
        self.heard.append(("receipt", raw))

    def take_letter(self, kind: str, raw: bytes) -> bool:
        if not self.full:
            self.heard.append((kind, raw))
        return not self.full

    def trust_version(self) -> object:
        return frozenset(self._of.keyring.keys)


def opening(realm: Realm, of: Traveller) -> tuple[Opening, Ear, list[Any]]:
    ear, reports = Ear(realm, of), []  # type: ignore[var-annotated]
    return Opening(Desk(of.custodian, ear, lambda: of.identity, reports.append)), ear, reports


CONTENTS = Contents(
    letters=[
        CarriedLetter(kind="receipt", envelope="r"),
        CarriedLetter(kind="config", envelope="c"),
        CarriedLetter(kind="sample", envelope="no such kind down"),
    ],
    trust="dHJ1c3Q=",
)


async def test_trust_comes_first_then_letters_in_order_and_only_once(
    pair: tuple[Traveller, Traveller], realm: Realm
) -> None:
    a, _ = pair
    made, ear, reports = opening(realm, a)
    for parcel in realm.answer(a, CONTENTS):
        a.custodian.down(parcel.write())
    assert await made.run() == 1
    assert ear.heard == [("trust", b"trust"), ("receipt", b"r"), ("config", b"c")]
    assert await made.run() == 0
    a.custodian.down(parcel.write())
    assert await made.run() == 0, "it comes by several carriers"
    assert reports == []


async def test_a_bundle_stays_until_all_of_it_is_stored(pair: tuple[Traveller, Traveller], realm: Realm) -> None:
    a, _ = pair
    made, ear, _ = opening(realm, a)
    for parcel in realm.answer(a, CONTENTS):
        a.custodian.down(parcel.write())
    ear.full = True
    assert await made.run() == 0
    assert made.problem is not None
    ear.full = False
    assert await made.run() == 1
    assert made.problem is None


async def test_a_bundle_opens_though_something_else_of_its_id_is_carried(three: list[Traveller], realm: Realm) -> None:
    a, b, c = three
    made, ear, reports = opening(realm, a)
    (answer,) = realm.answer(a, CONTENTS)
    c.custodian.packer.pack()
    (own,) = [parcel for packed in c.store.packed() for parcel in c.store.fragments_of(packed.id)]
    namesake = replace(own, head=own.head.model_copy(update={"id": answer.head.id}))
    raw = seal(namesake.head.write(), c.identity.signer, BUNDLE_TYPE)
    namesake = replace(namesake, head_bytes=raw, envelope=parse(raw, BUNDLE_TYPE))
    assert a.custodian.take(namesake, Peer(c.address, key=c.identity.public_key)) == "kept"
    assert a.custodian.take(answer, Peer(b.address)) == "arrived"
    assert await made.run() == 1
    assert (ear.heard[0], reports) == (("trust", b"trust"), [])
    assert [one.key for one in a.store.carried() if not one.own] == [key_of(namesake)], "it is still carried"


def answered_by_a_stranger(realm: Realm, folder: Path) -> Traveller:
    """A device that holds a bundle of a courier whose key it does not know yet."""
    present, realm.signers["courier"] = realm.signers["courier"], Signer.generate()
    a = Traveller(realm, folder / "old", "old")
    realm.signers["courier"] = present
    for parcel in realm.answer(a, CONTENTS):
        a.custodian.down(parcel.write())
    return a


async def test_a_pack_inside_may_introduce_the_signer(realm: Realm, tmp_path: Path) -> None:
    a = answered_by_a_stranger(realm, tmp_path)
    made, ear, reports = opening(realm, a)
    assert await made.run() == 0
    assert ear.heard == [("trust", b"trust")], "letters wait for a signer that is known"
    assert await made.run() == 0
    assert len(ear.heard) == 1, "and nothing is tried again before there is newer trust"
    ear.publishes = True
    a.realm.publish(a.folder.root)
    a.keyring.reload()
    assert await made.run() == 1
    assert reports == []
    a.close()


async def test_a_pack_that_could_not_be_judged_is_tried_again_ever_later(realm: Realm, tmp_path: Path) -> None:
    a = answered_by_a_stranger(realm, tmp_path)
    made, ear, _ = opening(realm, a)
    ear.judges = False
    tried = []
    for _ in range(600):
        await made.run()
        tried.append(len(ear.heard))
    turns = [turn for turn in range(600) if turn == 0 or tried[turn] > tried[turn - 1]]
    assert turns == [0, 1, 3, 7, 15, 31, 63, 127, 255, 511]
    ear.judges = ear.publishes = True
    ear.heard.clear()
    for _ in range(MAX_PAUSE_TURNS):
        await made.run()
    assert [kind for kind, _ in ear.heard] == ["trust", "receipt", "config"]
    a.close()


async def test_a_bundle_that_cannot_be_read_is_reported_once(pair: tuple[Traveller, Traveller], realm: Realm) -> None:
    a, b = pair
    made, _, reports = opening(realm, a)
    seal, other = a.identity.seal_seed, b.identity.seal_seed
    a.identity = a.identity.model_copy(update={"seal_seed": other})
    parcels = realm.answer(a, CONTENTS)
    a.identity = a.identity.model_copy(update={"seal_seed": seal})
    for parcel in parcels:
        a.custodian.down(parcel.write())
    assert await made.run() == 0
    assert [report.reason for report in reports] == ["wrong_seal"]
    a.custodian.down(parcels[0].write())
    assert await made.run() == 0
    assert len(reports) == 1


async def test_a_bundle_that_makes_room_while_another_is_opened_is_no_forgery(
    pair: tuple[Traveller, Traveller], realm: Realm
) -> None:
    a, _ = pair
    made, ear, reports = opening(realm, a)
    answers = [realm.answer(a, contents)[0] for contents in (CONTENTS, Contents())]
    for parcel in answers:
        a.custodian.down(parcel.write())

    async def evict(_: bytes) -> bool:
        a.store.drop([key_of(answers[1])])
        return True

    ear.take_trust = evict  # type: ignore[assignment, method-assign]
    assert await made.run() == 1
    assert reports == []
    a.custodian.down(answers[1].write())
    assert await made.run() == 1, "it opens once it comes again"
