"""A stick that somebody has prepared, and a neighbour that forges: what they cannot reach, destroy or use up."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ulid import ULID

from causeway.bundle.folder import BundleFolder
from edge_runtime.carriers import folder as carriers_folder
from edge_runtime.carriers.folder import FolderError
from edge_runtime.carriers.listing import read_name
from edge_runtime.carriers.names import key_of, label_of
from edge_runtime.carriers.pieces import MAX_RECIPE_BYTES, piece_path
from edge_runtime.carriers.port import Peer
from edge_runtime.folder import write_durable
from schemas.bundles import Addressed, CarriedLetter, Contents, Parcel, read_parcel, write_bundle
from schemas.envelope import Signer
from schemas.errors import EnvelopeError
from schemas.ids import Address
from services.kit.errors import RefusedError
from tests.support.carriers import Realm, Traveller, meet


@pytest.fixture
def stick(stick: Path) -> Path:
    (stick / "causeway" / "up").mkdir(parents=True)
    return stick


@pytest.fixture
def prize(tmp_path: Path) -> Path:
    """A file outside the stick that nobody may write."""
    path = tmp_path / "prize"
    path.write_text("precious")
    return path


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(prize: Path, tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    target.with_name(f".{target.name}.new").symlink_to(prize)
    write_durable(target, b"mine")
    assert (prize.read_text(), target.read_bytes()) == ("precious", b"mine")


def test_a_pipe_in_the_place_of_a_temporary_file_stops_nobody(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    os.mkfifo(target.with_name(f".{target.name}.new"))
    write_durable(target, b"mine")
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("planted", ["causeway", "causeway/up"])
def test_letters_are_not_written_through_a_link_on_the_stick(
    pair: tuple[Traveller, Traveller], stick: Path, tmp_path: Path, planted: str
) -> None:
    a, _ = pair
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(stick / planted)
    (stick / planted).symlink_to(elsewhere)
    a.say()
    with pytest.raises(FolderError, match="link"):
        a.stick(stick).export(urgent=True)
    assert list(elsewhere.rglob("*")) == []
    assert {one.copies for one in a.store.carried()} <= {4}, "nothing was given away"


@pytest.mark.parametrize("planted", ["causeway", "causeway/down", "causeway/down/home.cam", "causeway/pieces/aa"])
def test_the_platform_writes_through_no_link_on_the_stick(stick: Path, tmp_path: Path, planted: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(stick / planted, ignore_errors=True)
    (stick / planted).parent.mkdir(parents=True, exist_ok=True)
    (stick / planted).symlink_to(elsewhere)

    def export() -> None:
        folder = BundleFolder(stick)
        folder.put_down(Address("home", "cam"), str(ULID()), [b"frame"])
        folder.put_piece("aa" * 32, b"piece")

    with pytest.raises(RefusedError, match="link"):
        export()
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []


def test_the_platform_reads_nothing_but_files_of_the_stick(stick: Path, prize: Path) -> None:
    up = stick / "causeway" / "up"
    (up / f"{ULID()}.0.bundle").symlink_to(prize)
    os.mkfifo(up / f"{ULID()}.0.bundle")
    assert [file for files in BundleFolder(stick).up()[0].values() for file in files] == []


@pytest.mark.parametrize("beyond", [0, 1])
def test_no_more_than_a_recipe_is_read_from_the_stick(stick: Path, beyond: int) -> None:
    data = bytes(MAX_RECIPE_BYTES + beyond)
    sha256 = hashlib.sha256(data).hexdigest()
    write_durable(piece_path(stick / "causeway" / "pieces", sha256), data)
    assert BundleFolder(stick).recipe(sha256) == (None if beyond else data)


def test_letters_of_a_former_life_stay_on_the_stick(realm: Realm, stick: Path, tmp_path: Path) -> None:
    before = Traveller(realm, tmp_path / "before", "cam")
    before.say("the disk of this one dies")
    before.stick(stick).export(urgent=True)
    (only,) = (stick / "causeway" / "up").glob("*.bundle")
    before.close()
    after = Traveller(realm, tmp_path / "after", "cam")
    after.say("reinstalled")
    after.stick(stick).export(urgent=True)
    assert only.exists(), "nobody else holds these letters"
    assert len(list(only.parent.glob("*.bundle"))) == 2
    after.close()


def peer(of: Traveller) -> Peer:
    return Peer(of.address, key=of.identity.public_key)


def like(parcel: Parcel, realm: Realm, to: Traveller, fragments: int) -> list[Parcel]:
    """What a forger makes who has seen the id of a bundle."""
    head = parcel.head
    label = Addressed(
        bundle_id=head.id,
        platform=realm.platform,
        origin=head.origin,
        destination=head.destination,
        created=head.created,
        lifetime_s=head.lifetime_s,
        priority="control",
    )
    noise = [CarriedLetter(kind="config", envelope=os.urandom(15_000).hex()) for _ in range(fragments)]
    forged = write_bundle(Contents(letters=noise), label, seal_key=to.identity.seal_key, signer=Signer.generate())
    return [replace(each, way=each.way.model_copy(update={"hops": 1})) for each in forged]


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("first", ["forged", "genuine"])
def test_a_forged_fragment_of_a_bundle_does_not_spoil_the_genuine(
    pair: tuple[Traveller, Traveller], realm: Realm, fragments: int, first: str
) -> None:
    a, b = pair
    (genuine,) = realm.answer(a, Contents())
    forged = like(genuine, realm, a, fragments)[-1]
    for parcel in (forged, genuine) if first == "forged" else (genuine, forged):
        a.custodian.take(parcel, peer(b))
    assert a.store.whole(a.address.source) == [genuine.head.id]
    assert [each.head_bytes for each in a.store.fragments_of(genuine.head.id)] == [genuine.head_bytes]


def test_bundles_that_never_become_whole_do_not_keep_newer_ones_out(
    pair: tuple[Traveller, Traveller], realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.carriers.custodian.MAX_ARRIVING", 3)
    a, b = pair
    noise = Contents(letters=[CarriedLetter(kind="config", envelope=os.urandom(30_000).hex())])
    torn = [realm.answer(a, noise) for _ in range(3)]
    for first, *_ in torn:
        assert a.custodian.take(first, peer(b)) == "arrived"
    newest = realm.answer(a, noise)
    assert [a.custodian.take(parcel, peer(b)) for parcel in newest] == ["arrived"] * len(newest)
    assert newest[0].head.id in a.store.whole(a.address.source)
    assert len(a.store.carried()) == 3


def own_bundle(of: Traveller) -> list[Parcel]:
    """What it has packed of its own."""
    return [parcel for packed in of.store.packed() for parcel in of.store.fragments_of(packed.id)]


def heads(of: Traveller, bundle: str) -> set[bytes]:
    """What it holds under the id of a bundle."""
    return {parcel.head_bytes for parcel in of.store.fragments_of(bundle)}


def altered(parcel: Parcel) -> Parcel:
    """The same head with a signature that does not hold; only who knows the key can tell."""
    ((keyid, signature),) = parcel.envelope.signatures
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    old, new = (base64.b64encode(each) for each in (signature, flipped))
    assert old in parcel.head_bytes
    envelope = replace(parcel.envelope, signatures=((keyid, flipped),))
    return replace(parcel, envelope=envelope, head_bytes=parcel.head_bytes.replace(old, new))


@pytest.mark.parametrize("keyid", ["\ud800", "k\u00e9", "a\nb", ""])
def test_a_key_that_no_text_can_name_is_refused_and_stops_nobody(
    pair: tuple[Traveller, Traveller], stick: Path, keyid: str
) -> None:
    a, b = pair
    a.say()
    a.custodian.packer.pack()
    (genuine,) = own_bundle(a)
    envelope = json.loads(genuine.head_bytes)
    envelope["signatures"][0]["keyid"] = keyid
    raw = replace(genuine, head_bytes=json.dumps(envelope).encode()).write()
    with pytest.raises(EnvelopeError, match="keyid"):
        read_parcel(raw)
    write_durable(stick / "causeway" / "up" / f"{genuine.head.id}.0.bundle", raw)
    done = b.stick(stick).take()
    assert (done.refused, done.carried) == (1, 0)


def test_what_a_neighbour_forged_does_not_keep_the_genuine_off_a_stick(
    pair: tuple[Traveller, Traveller], forger: Traveller, stick: Path
) -> None:
    a, b = pair
    a.say()
    a.custodian.packer.pack()
    (genuine,) = own_bundle(a)
    forged = altered(genuine).on_its_way(hops=1, copies=1, age_s=0.0)
    assert b.custodian.take(forged, peer(forger)) == "kept"
    b.custodian.released(key_of(forged), 4, peer(forger))
    b.stick(stick).export()
    file = stick / "causeway" / "up" / f"{genuine.head.id}.0.bundle"
    assert key_of(read_parcel(file.read_bytes())) == key_of(forged)
    meet(a, b)
    assert b.stick(stick).export().fragments == 1
    assert key_of(read_parcel(file.read_bytes())) == key_of(genuine)
    assert b.stick(stick).export().fragments == 0, "and the forged one does not come back"


@pytest.fixture
def forger(realm: Realm, tmp_path: Path) -> Iterator[Traveller]:
    """A device of the platform, with a certificate, that means ill."""
    traveller = Traveller(realm, tmp_path / "mallory", "mallory")
    yield traveller
    traveller.close()


@pytest.mark.parametrize("kind", ["stranger's", "altered", "its own"])
def test_who_knows_the_id_of_a_bundle_cannot_take_its_place_at_a_carrier(
    pair: tuple[Traveller, Traveller], forger: Traveller, realm: Realm, kind: str
) -> None:
    a, b = pair
    a.say("precious")
    a.custodian.packer.pack()
    (genuine,) = own_bundle(a)
    if kind == "altered":
        forged = altered(genuine)
    else:
        label = Addressed(
            bundle_id=genuine.head.id,
            platform=realm.platform,
            origin=forger.address.source if kind == "its own" else a.address.source,
            destination=genuine.head.destination,
            created=genuine.head.created,
            lifetime_s=3_600,
            priority="control",
        )
        seal, signer = realm.seal.public_key().public_bytes_raw(), forger.identity.signer
        (forged,) = write_bundle(Contents(), label, seal_key=seal, signer=signer)
    assert b.custodian.take(forged.on_its_way(hops=1, copies=1, age_s=0.0), peer(forger)) == "kept"
    meet(a, b)
    assert genuine.head_bytes in heads(b, genuine.head.id), "the forged one does not keep it out"
    # What the forger says is done with is its own bundle at most.
    forger.store.finish([label_of(forged.head)])
    forger.store.finish([replace(label_of(genuine.head), origin=forger.address.source)])
    meet(forger, b)
    assert genuine.head_bytes in heads(b, genuine.head.id)
    # Nor does the courier's word on a bundle of the forger's own under this id count for another's.
    (answer,) = realm.answer(forger, Contents(), acknowledges=(genuine.head.id,))
    b.custodian.prove(answer.head_bytes)
    assert genuine.head_bytes in heads(b, genuine.head.id)
    assert kind != "its own" or forged.head_bytes not in heads(b, genuine.head.id)
    # And who only relays hands both on, since the courier can tell them apart.
    gateway = Traveller(realm, a.folder.root.parent / "gw", "gw")
    gateway.linked = True
    meet(b, gateway)
    assert genuine.head_bytes in heads(gateway, genuine.head.id)
    meet(b, gateway)  # the courier's word on the namesake travels along
    assert meet(b, gateway) == 4, "nothing is sent twice"
    gateway.close()


def test_junk_in_a_synced_folder_is_read_and_told_once_and_counted_as_long_as_it_lies_there(
    pair: tuple[Traveller, Traveller], realm: Realm, stick: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, _ = pair
    carrier = a.stick(stick)
    own, up = stick / "causeway" / "down" / "home.a", stick / "causeway" / "up"
    own.mkdir(parents=True)
    for folder in (own, up):
        (folder / f"{ULID()}.0.bundle").write_bytes(b"junk")
    (genuine,) = realm.answer(a, Contents())
    forged = own / f"{genuine.head.id}.0.bundle"
    elsewhere = Realm().answer(a, Contents())[0]
    forged.write_bytes(elsewhere.write())

    def told() -> int:
        caplog.clear()
        done = carrier.take()
        assert done.refused == 3
        return len([record for record in caplog.records if "folder.bad_file" in record.getMessage()])

    with caplog.at_level("WARNING"):
        assert [told() for _ in range(3)] == [3, 0, 0]
    with pytest.MonkeyPatch.context() as patch:
        read: list[Path] = []
        patch.setattr(carriers_folder, "read_bounded", lambda path, _: read.append(path))
        carrier.take()
        assert read == [forged], "newer trust may mend what is a fragment; nothing else is read again"
    # What takes its place is looked at.
    write_durable(forged, genuine.write())
    done = carrier.take()
    assert (done.arrived, done.refused) == (1, 2)


def test_a_name_with_a_leading_zero_is_none_of_ours() -> None:
    bundle = str(ULID())
    assert read_name(f"{bundle}.10.bundle") == (bundle, 10)
    assert read_name(f"{bundle}.0.bundle") == (bundle, 0)
    assert [read_name(f"{bundle}.{index}.bundle") for index in ("01", "00", "64", "100", "")] == [None] * 5
