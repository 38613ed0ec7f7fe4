"""A stick or a synced folder between devices, without any platform."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.carriers import folder
from edge_runtime.carriers.folder import FolderError
from edge_runtime.carriers.listing import fragments
from edge_runtime.carriers.pieces import PieceFolder, piece_files
from edge_runtime.folder import write_durable
from schemas.bundles import MAX_COPIES, Contents, read_parcel
from tests.support.carriers import Realm, Traveller, letters_of, pieces_on


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


def answer_to_each(devices: tuple[Traveller, ...], stick: Path, realm: Realm) -> None:
    """Lay a bundle of the platform for each of them on a stick."""
    for device in devices:
        (parcel,) = realm.answer(device, Contents())
        path = stick / "causeway" / "down" / f"home.{device.address.device}" / f"{parcel.head.id}.0.bundle"
        write_durable(path, parcel.write())


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    pair: tuple[Traveller, Traveller], stick: Path, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    answer_to_each(pair, stick, realm)

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


def test_a_fragment_that_could_not_be_read_once_is_read_again(
    pair: tuple[Traveller, Traveller], stick: Path, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    answer_to_each(pair, stick, realm)
    carrier = a.stick(stick)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("edge_runtime.carriers.pieces.os.open", broken)
        done = carrier.take()
        assert (done.refused, len(done.reasons)) == (2, 2)
        assert all("Input/output error" in reason for reason in done.reasons)
        done = carrier.take()
        assert (done.refused, done.reasons) == (2, []), "told once and counted for as long"
    done = carrier.take()
    assert (done.arrived, done.carried, done.refused) == (1, 1, 0)
    assert {one.destination for one in a.store.carried()} == {a.address.source, b.address.source}


def test_junk_that_may_be_read_since_is_looked_at(
    pair: tuple[Traveller, Traveller], stick: Path, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = pair
    (parcel,) = realm.answer(a, Contents())
    path = stick / "causeway" / "down" / "home.a" / f"{parcel.head.id}.0.bundle"
    write_durable(path, parcel.write())
    carrier = a.stick(stick)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "read_bounded", lambda *_: None)
        assert carrier.take().refused == 1
    assert carrier.take().arrived == 0
    before = path.stat()
    path.chmod(0o600)
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert carrier.take().arrived == 1


def test_what_found_no_room_is_taken_once_there_is_some(
    pair: tuple[Traveller, Traveller], stick: Path, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    (parcel,) = realm.answer(b, Contents())
    write_durable(stick / "causeway" / "down" / "home.b" / f"{parcel.head.id}.0.bundle", parcel.write())
    carrier = a.stick(stick)
    with monkeypatch.context() as patch:
        patch.setattr(a.custodian, "_post", replace(a.custodian._post, carry_bytes=1))
        for _ in range(2):
            done = carrier.take()
            assert (done.carried, done.no_room) == (0, 1)
    assert carrier.take().carried == 1


def test_a_folder_of_another_device_that_cannot_be_read_keeps_nothing_from_being_taken(
    three: list[Traveller], stick: Path, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = three[0]
    for device in three:
        (parcel,) = realm.answer(device, Contents())
        to = stick / "causeway" / "down" / f"home.{device.address.device}"
        write_durable(to / f"{parcel.head.id}.0.bundle", parcel.write())
    closed, real = {"home.b"}, os.scandir

    def scan(path: Path) -> Any:
        if Path(path).name in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("edge_runtime.carriers.listing.os.scandir", scan)
    done = a.stick(stick).take()
    assert (done.arrived, done.carried, done.left) == (1, 1, 1)
    closed.add("home.a")
    with pytest.raises(FolderError, match="Permission denied"):
        a.stick(stick).take()
