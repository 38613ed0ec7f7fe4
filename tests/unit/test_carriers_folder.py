"""A stick between devices, without any platform; and what comes out of bundles once they are here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.carriers import folder
from edge_runtime.carriers.folder import FolderError
from edge_runtime.carriers.handing import MAX_WAITING, Counter, HandingIn
from edge_runtime.carriers.listing import fragments
from edge_runtime.carriers.names import key_of
from edge_runtime.carriers.opening import Desk, Opening
from edge_runtime.carriers.pieces import PieceFolder, piece_files, piece_path
from edge_runtime.carriers.port import Peer
from edge_runtime.folder import write_durable
from edge_runtime.letters.sending import Run
from edge_runtime.parcels.fetching import PieceFetcher
from schemas.aggregator import Artifact
from schemas.bundles import BUNDLE_TYPE, MAX_COPIES, CarriedLetter, Contents, bundle_of_letter, read_parcel
from schemas.depot import write_recipe
from schemas.envelope import Signer, parse, seal
from schemas.events import Message
from tests.support.carriers import Realm, Traveller, letters_of


def files(stick: Path, kind: str) -> list[Path]:
    return sorted((stick / "causeway" / kind).rglob("*.bundle"))


def test_a_stick_brings_letters_to_the_platform(pair: tuple[Traveller, Traveller], stick: Path, realm: Realm) -> None:
    a, _ = pair
    said = [a.say("one"), a.say("two")]
    done = a.stick(stick).export(urgent=True)
    assert (done.bundles, done.fragments, done.problem) == (1, 1, None)
    parcels = [read_parcel(path.read_bytes()) for path in files(stick, "up")]
    assert [letter.id for letter in letters_of(realm.open(parcels))] == said
    again = a.stick(stick).export(urgent=True)
    assert (again.fragments, again.present) == (0, 1), "the same letters are not packed twice"


def test_every_new_stick_takes_its_share_and_after_four_there_is_a_new_bundle(
    pair: tuple[Traveller, Traveller], tmp_path: Path
) -> None:
    a, _ = pair
    a.say()
    seen: dict[str, int] = {}
    for n in range(6):
        folder = tmp_path / f"stick-{n}"
        folder.mkdir()
        assert a.stick(folder).export(urgent=True).fragments == 1
        (parcel,) = [read_parcel(path.read_bytes()) for path in files(folder, "up")]
        seen[parcel.head.id] = seen.get(parcel.head.id, 0) + parcel.way.copies
    assert len(seen) == 2, "one was used up"
    assert all(copies <= MAX_COPIES for copies in seen.values())


def test_a_synced_folder_gives_no_more_than_its_share_however_often_it_is_looked_at(
    pair: tuple[Traveller, Traveller], stick: Path
) -> None:
    a, b = pair
    a.say()
    carrier, other = a.stick(stick), b.stick(stick)
    for _ in range(5):
        carrier.export()
        other.take()
        other.export()
        carrier.take()
    copies = sum(read_parcel(path.read_bytes()).way.copies for path in files(stick, "up"))
    mine = next(one.key for one in a.store.carried() if one.own)
    holders = [one.copies for t in pair for one in t.store.carried() if one.key == mine]
    on_stick = sum(
        read_parcel(path.read_bytes()).way.copies for path in files(stick, "up") if path.name.startswith(mine[0])
    )
    assert len(holders) == 2, "b carries it too"
    assert sum(holders) + on_stick <= MAX_COPIES
    assert copies


def test_what_is_for_a_device_is_taken_out_of_the_folder_and_the_rest_is_carried(
    pair: tuple[Traveller, Traveller], stick: Path, realm: Realm, tmp_path: Path
) -> None:
    a, b = pair
    c = Traveller(realm, tmp_path / "c", "c")
    for device in (b, c):
        (parcel,) = realm.answer(device, Contents())
        a.custodian.down(parcel.write())
    assert a.stick(stick).export(own=False).fragments == 2
    assert len(files(stick, "down")) == 2
    done = b.stick(stick).take()
    assert (done.arrived, done.complete, done.carried, done.refused) == (1, 1, 1, 0)
    assert [path.parent.name for path in files(stick, "down")] == ["home.c"], "its own was delivered, c's stays for c"
    assert c.stick(stick).take().complete == 1
    assert files(stick, "down") == []
    assert c.stick(stick).take().arrived == 0
    c.close()


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    pair: tuple[Traveller, Traveller], stick: Path, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    for device in pair:
        (parcel,) = realm.answer(device, Contents())
        path = stick / "causeway" / "down" / f"home.{device.address.device}" / f"{parcel.head.id}.0.bundle"
        write_durable(path, parcel.write())

    def forbid(*_: Any, **__: Any) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", forbid)
    for module in ("changes", "folder"):
        monkeypatch.setattr(f"edge_runtime.carriers.{module}.write_durable", forbid)
    done = a.stick(stick).take()
    assert (done.arrived, done.carried) == (1, 1)
    others = [one for one in a.store.carried() if one.destination == b.address.source]
    assert [one.copies for one in others] == [0], "the folder keeps its share, so this copy may only be delivered"
    a.say()
    with pytest.raises(FolderError, match="Read-only"):
        a.stick(stick).export(urgent=True)
    assert {one.copies for one in a.store.carried() if one.own} == {MAX_COPIES}, "what was not written is not given"


def test_strange_files_are_left_alone(pair: tuple[Traveller, Traveller], stick: Path, tmp_path: Path) -> None:
    a, b = pair
    a.say()
    a.stick(stick).export(urgent=True)
    up = stick / "causeway" / "up"
    (good,) = files(stick, "up")
    (up / "notes.txt").write_text("mine")
    (up / f"{good.name[:26]}.63.bundle").write_bytes(good.read_bytes()[:-1])
    (up / f"{good.name[:26]}.99.bundle").write_bytes(b"")
    secret = tmp_path / "secret"
    secret.write_bytes(good.read_bytes())
    (up / f"{good.name[:26]}.7.bundle").symlink_to(secret)
    os.mkfifo(up / f"{good.name[:26]}.8.bundle")
    done = b.stick(stick).take()
    assert (done.carried, done.refused) == (1, 3)
    assert (up / "notes.txt").exists()
    with pytest.raises(FolderError, match="no such folder"):
        a.stick(stick / "nowhere").export()
    with pytest.raises(FolderError, match="nothing is there"):
        a.stick(tmp_path / "a").take()


def pieces_on(stick: Path, *contents: bytes) -> tuple[Artifact, bytes]:
    """An artifact, its pieces and its recipe as the platform writes them."""
    whole = b"".join(contents)
    recipe = write_recipe([(hashlib.sha256(part).digest(), len(part)) for part in contents])
    for data in (*contents, recipe):
        write_durable(piece_path(stick / "causeway" / "pieces", hashlib.sha256(data).hexdigest()), data)
    return (
        Artifact(
            sha256=hashlib.sha256(whole).hexdigest(),
            length=len(whole),
            recipe=hashlib.sha256(recipe).hexdigest(),
            pieces=len(contents),
        ),
        whole,
    )


class NoLink:
    """A sender that never has a link."""

    def send_parcel(self, _kind: str, _raw: bytes) -> bool:
        return False


async def test_pieces_from_a_folder_make_an_artifact_without_any_network(
    pair: tuple[Traveller, Traveller], stick: Path, tmp_path: Path
) -> None:
    a, _ = pair
    artifact, whole = pieces_on(stick, *(os.urandom(5_000) for _ in range(70)))
    shelf = PieceFolder(a.folder.pieces, max_bytes=1 << 20)
    done = a.stick(stick, shelf).take()
    assert (done.pieces, done.refused, done.no_room) == (71, 0, 0)
    assert a.stick(stick, shelf).take().pieces == 0, "they are here already"
    fetcher = PieceFetcher(NoLink(), shelf, patience_s=5)  # type: ignore[arg-type]
    await fetcher.fetch(artifact, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == whole
    assert list(a.folder.pieces.rglob("*")) == [path for path in a.folder.pieces.rglob("*") if path.is_dir()]


async def test_a_synced_folder_is_read_in_place(pair: tuple[Traveller, Traveller], stick: Path, tmp_path: Path) -> None:
    a, _ = pair
    artifact, whole = pieces_on(stick, b"one", b"two")
    pieces = stick / "causeway" / "pieces"
    shelf = PieceFolder(a.folder.pieces, (pieces,), 1 << 20)
    fetcher = PieceFetcher(NoLink(), shelf, patience_s=5)  # type: ignore[arg-type]
    await fetcher.fetch(artifact, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == whole
    assert len(list(pieces.rglob("*"))) > 3, "what others put there is not ours to delete"


def test_a_piece_that_is_not_what_it_is_named_is_not_taken(pair: tuple[Traveller, Traveller], stick: Path) -> None:
    a, _ = pair
    pieces_on(stick, b"one", b"two")
    one = piece_path(stick / "causeway" / "pieces", hashlib.sha256(b"one").hexdigest())
    one.write_bytes(b"0ne")
    shelf = PieceFolder(a.folder.pieces, max_bytes=1 << 20)
    done = a.stick(stick, shelf).take()
    assert (done.pieces, done.refused) == (2, 1)
    assert shelf.find([one.name], 32) == {}
    small = PieceFolder(a.folder.root / "small", max_bytes=10)
    assert a.stick(stick, small).take().no_room == 1
    tight = PieceFolder(a.folder.pieces, max_bytes=3)
    assert tight.trim() >= 1
    assert sum(path.stat().st_size for path in piece_files(a.folder.pieces)) <= 3


class Ear:
    """What an opening passes on."""

    def __init__(self, realm: Realm, of: Traveller) -> None:
        self._realm, self._of = realm, of
        self.heard: list[tuple[str, bytes]] = []
        self.full = False
        self.publishes = False

    async def take_trust(self, pack: bytes) -> None:
        self.heard.append(("trust", pack))
        if self.publishes:
            self._realm.publish(self._of.folder.root)
            self._of.keyring.reload()

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


async def test_a_pack_inside_may_introduce_the_signer(realm: Realm, tmp_path: Path) -> None:
    old = Signer.generate()
    present, realm.signers["courier"] = realm.signers["courier"], old
    a = Traveller(realm, tmp_path / "old", "old")
    realm.signers["courier"] = present
    made, ear, reports = opening(realm, a)
    for parcel in realm.answer(a, CONTENTS):
        a.custodian.down(parcel.write())
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


def test_fragments_are_handed_in_a_few_at_a_time_and_custody_ends_with_the_receipt(
    pair: tuple[Traveller, Traveller], realm: Realm
) -> None:
    a, gateway = pair
    others = []
    for _ in range(MAX_WAITING + 3):
        a.say()
        a.custodian.packer.pack(anew=True, urgent=True)
        (own,) = [a.store.load(one.key) for one in a.store.carried() if one.own]
        assert own is not None
        others.append(own)
        gateway.custodian.receive(own.on_its_way(hops=1, copies=1, age_s=0), a.address.source)
    sent: list[tuple[str, str]] = []

    def send(kind: str, data: Message, letter_id: str) -> None:
        gateway.outbox.add(kind, data, "bulk", letter_id)
        sent.append((letter_id, bundle_of_letter(data).head.id))  # type: ignore[arg-type]

    handing = HandingIn(
        Counter(
            gateway.store,
            gateway.outbox,
            lambda: gateway.linked,
            send,
            gateway.outbox.summary().waiting.bytes + (64 << 20),
        )
    )
    assert handing.run() == 0, "there is no link"
    gateway.linked = True
    assert handing.run() == MAX_WAITING
    assert handing.run() == 0
    gateway.outbox.receipt({"bulk": 3})
    assert handing.run() == 3
    assert len(gateway.store.carried()) == MAX_WAITING
    assert gateway.custodian.receive(others[0], a.address.source) == "held", "it is not taken again"
    gateway.outbox.receipt({"bulk": MAX_WAITING + 3})
    assert handing.run() == 0
    assert gateway.store.carried() == []
    assert sorted(bundle for _, bundle in sent) == sorted(parcel.head.id for parcel in others)


def test_a_letter_that_came_to_nothing_is_written_again(pair: tuple[Traveller, Traveller]) -> None:
    a, gateway = pair
    a.say()
    a.custodian.packer.pack()
    (own,) = [a.store.load(one.key) for one in a.store.carried() if one.own]
    assert own is not None
    gateway.custodian.receive(own.on_its_way(hops=1, copies=1, age_s=0), a.address.source)
    gateway.linked = True
    ids: list[str] = []
    counter = Counter(
        gateway.store, gateway.outbox, lambda: True, lambda _kind, _data, letter_id: ids.append(letter_id), 64 << 20
    )
    assert HandingIn(counter).run() == 1
    assert HandingIn(counter).run() == 1, "a crash before it was stored"
    assert len(set(ids)) == 2


def test_custody_does_not_end_with_a_letter_that_is_given_up_while_receipts_are_noted(
    pair: tuple[Traveller, Traveller], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, gateway = pair
    a.say()
    a.custodian.packer.pack()
    (own,) = [a.store.load(one.key) for one in a.store.carried() if one.own]
    assert own is not None
    gateway.custodian.receive(own.on_its_way(hops=1, copies=1, age_s=0), a.address.source)

    def send(kind: str, data: Message, letter_id: str) -> None:
        gateway.outbox.add(kind, data, "bulk", letter_id)

    handing = HandingIn(Counter(gateway.store, gateway.outbox, lambda: True, send, 64 << 20))
    assert handing.run() == 1

    def then_given_up(look: Callable[[str], list[Any]]) -> Callable[[str], list[Any]]:
        def looked(kind: str) -> list[Any]:
            found = look(kind)
            for letter in gateway.outbox.load("bulk", Run(1, 1)):
                assert gateway.outbox.give_up(letter, "evicted")
            return found

        return looked

    for method in ("ids", "waiting"):
        monkeypatch.setattr(gateway.outbox, method, then_given_up(getattr(gateway.outbox, method)))
    assert handing.run() == 1, "it is handed in again"
    assert [one.key for one in gateway.store.carried()] == [key_of(own)]


@pytest.mark.parametrize("after", ["fragments", "read_bounded"])
def test_what_others_take_out_of_a_synced_folder_meanwhile_is_no_trouble(
    three: list[Traveller], stick: Path, realm: Realm, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    a, _, c = three
    for device in three:
        (parcel,) = realm.answer(device, Contents())
        to = stick / "causeway" / "down" / f"home.{device.address.device}"
        write_durable(to / f"{parcel.head.id}.0.bundle", parcel.write())
    going, real = files(stick, "down")[:2], getattr(folder, after)

    def then_gone(*given: Any) -> Any:
        found = real(*given)
        for path in going:
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(folder, after, then_gone)
    done = a.stick(stick).take()
    assert (done.refused, done.carried) == (0, 1)
    assert [one.destination for one in a.store.carried()] == [c.address.source]


@pytest.mark.parametrize("reads", ["read_bounded", "read_piece_file"])
def test_what_is_taken_out_before_it_is_read_is_not_refused(
    pair: tuple[Traveller, Traveller], stick: Path, realm: Realm, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    a, b = pair
    (parcel,) = realm.answer(a, Contents())
    write_durable(stick / "causeway" / "down" / "home.a" / f"{parcel.head.id}.0.bundle", parcel.write())
    b.say()
    b.stick(stick).export(urgent=True)
    pieces_on(stick, b"one")
    going = [*stick.rglob("*.bundle"), *piece_files(stick / "causeway" / "pieces")]
    assert len(going) == 4
    real = getattr(folder, reads)

    def gone(*given: Any) -> Any:
        for path in going:
            path.unlink(missing_ok=True)
        return real(*given)

    monkeypatch.setattr(folder, reads, gone)
    assert a.stick(stick, PieceFolder(a.folder.pieces, max_bytes=1 << 20)).take().refused == 0
    assert not any(path.exists() for path in going)


def test_a_folder_that_goes_while_it_is_listed_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    down = tmp_path / "home.cam"
    down.mkdir()
    real = os.scandir

    def scan(path: Path) -> Any:
        down.rmdir()
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert fragments(down).paths == []


async def test_a_dead_mount_holds_no_artifact_back(pair: tuple[Traveller, Traveller], tmp_path: Path) -> None:
    a, _ = pair
    dead = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match="too long"):
        dead.is_dir()
    shelf = PieceFolder(a.folder.pieces, (dead,), 1 << 20)
    data = hashlib.sha256(b"one").hexdigest()
    assert shelf.find([data], 32) == {}
    shelf.put(data, b"one")
    assert shelf.find([data], 32) == {data: b"one"}


async def test_a_bundle_that_makes_room_while_another_is_opened_is_no_forgery(
    pair: tuple[Traveller, Traveller], realm: Realm
) -> None:
    a, _ = pair
    made, ear, reports = opening(realm, a)
    answers = [realm.answer(a, contents)[0] for contents in (CONTENTS, Contents())]
    for parcel in answers:
        a.custodian.down(parcel.write())

    async def evict(_: bytes) -> None:
        a.store.drop([key_of(answers[1])])

    ear.take_trust = evict  # type: ignore[assignment, method-assign]
    assert await made.run() == 1
    assert reports == []
    a.custodian.down(answers[1].write())
    assert await made.run() == 1, "it opens once it comes again"
