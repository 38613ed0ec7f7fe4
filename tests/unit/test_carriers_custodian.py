"""What a custodian believes, keeps, refuses and forgets."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ulid import ULID

from edge_runtime.carriers.names import Label, key_of, label_of
from edge_runtime.carriers.port import Peer
from schemas.bundles import Addressed, Contents, Parcel, write_bundle
from schemas.envelope import Signer
from schemas.events import PLATFORM_RECIPIENT
from tests.support.carriers import COURIER, Realm, Traveller, meet


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


def test_of_many_proofs_the_newest_come_first(pair: tuple[Traveller, Traveller], realm: Realm) -> None:
    a, b = pair
    told = [realm.answer(a, Contents(), acknowledges=(str(ULID.from_int(number)),))[0] for number in range(3)]
    for proof in told:
        b.custodian.prove(proof.head_bytes)
    has = frozenset((str(ULID.from_int(number)), "mark") for number in range(3))
    assert b.custodian.proofs(Peer(a.address, has=has)) == [proof.head_bytes for proof in reversed(told)]


def test_what_waits_for_newer_trust_is_known_once_it_comes_again(realm: Realm, tmp_path: Path) -> None:
    a, b = (Traveller(realm, tmp_path / name, name) for name in "ab")
    (down,) = realm.answer(a, Contents())
    realm.publish(a.folder.root, but="courier")
    a.restart()
    assert a.custodian.take(down, Peer(b.address)) == "arrived"
    assert a.store.unverified(a.address.source) == [key_of(down)]
    realm.publish(a.folder.root)
    a.restart()
    assert a.custodian.take(down, Peer(b.address)) == "arrived"
    assert a.store.unverified(a.address.source) == []
    a.close()
    b.close()


def test_a_peer_cannot_declare_others_bundles_done(three: list[Traveller], realm: Realm) -> None:
    a, b, c = three
    a.say()
    meet(a, b)
    bundle = next(one.key[0] for one in b.store.carried() if one.origin == a.address.source)
    c.store.finish([Label(bundle, a.address.source, PLATFORM_RECIPIENT)])
    meet(c, b)
    assert bundle in {one.key[0] for one in b.store.carried()}, "without the courier's proof it stays"
    c.custodian.prove(b"{}")
    (fake,) = realm.answer(a, Contents(), acknowledges=(bundle,), signer=Signer.generate())
    b.custodian.prove(fake.head_bytes)
    assert bundle in {one.key[0] for one in b.store.carried()}
    # The destination itself is believed.
    (down,) = realm.answer(c, Contents())
    b.custodian.down(down.write())
    c.store.finish([label_of(down.head)])
    meet(b, c)
    assert down.head.id not in {one.key[0] for one in b.store.carried()}


def test_what_is_delivered_leaves_custody_and_is_not_taken_again(three: list[Traveller], realm: Realm) -> None:
    a, _, c = three
    (down,) = realm.answer(c, Contents())
    a.custodian.down(down.write())
    assert a.store.carried()[0].copies == 4
    meet(a, c)
    assert c.store.whole(c.address.source) == [down.head.id]
    assert key_of(down) not in {one.key for one in a.store.carried()}
    a.custodian.down(down.write())
    assert key_of(down) not in {one.key for one in a.store.carried()}


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
