"""A stick that somebody has filled with junk: the import stays quick, finds what is genuine, and says what it left."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import pytest
from ulid import ULID

from causeway.bundle.bring import bring
from causeway.bundle.folder import BundleFolder
from edge_runtime.carriers import folder as module
from edge_runtime.carriers import listing
from edge_runtime.carriers.folder import FolderCarrier
from edge_runtime.carriers.pieces import PieceFolder, piece_path
from edge_runtime.folder import write_durable
from schemas.bundles import Contents
from services.kit.api.courier import BundleImportAnswer
from tests.support.carriers import Realm, Traveller


def junk(folder: Path, files: int, name: str = "{}.0.bundle") -> None:
    """Files whose names sort in front of what was made today."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (folder / name.format(ULID.from_int(number))).write_bytes(b"junk")


def few(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """Look at so many of one folder."""
    monkeypatch.setattr(listing, "MAX_FILES", files)


def carried(of: Traveller) -> int:
    return sum(not one.own for one in of.store.carried())


def test_names_that_are_no_fragments_cost_no_place(
    pair: tuple[Traveller, Traveller], stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch, 3)
    a, b = pair
    a.say()
    a.stick(stick).export(urgent=True)
    junk(stick / "causeway" / "up", 300, "{}.junk")
    (stick / "causeway" / "down").mkdir()
    for number in range(300):
        (stick / "causeway" / "down" / f"folder {number}").mkdir()
    done = b.stick(stick).take()
    assert (done.carried, done.refused, done.left) == (1, 0, 0)


def test_well_named_junk_is_told_of_and_does_not_hide_what_is_genuine_for_long(
    pair: tuple[Traveller, Traveller], stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch, 30)
    a, b = pair
    a.say()
    a.stick(stick).export(urgent=True)
    junk(stick / "causeway" / "up", 60)
    # The worst order that a file system can give: all the junk first.
    scandir = os.scandir
    by_name = lambda folder: contextlib.nullcontext(sorted(scandir(folder), key=lambda entry: entry.name))
    monkeypatch.setattr(listing.os, "scandir", by_name)
    done = b.stick(stick).take()
    assert done.left == 31
    assert done.refused >= 29
    assert len(done.reasons) == module.MAX_REASONS
    assert all("not a fragment of a bundle" in reason for reason in done.reasons)
    again = 0
    while not carried(b):
        again += 1
        assert again < 100, "a half of the files is looked at each time, by chance"
        b.stick(stick).take()


@pytest.mark.parametrize("crowded", ["up", "down/home.aaa"])
def test_junk_in_one_folder_does_not_hide_another(
    three: list[Traveller], realm: Realm, stick: Path, monkeypatch: pytest.MonkeyPatch, crowded: str
) -> None:
    few(monkeypatch, 30)
    _, b, c = three
    (down,) = realm.answer(c, Contents())
    write_durable(stick / f"causeway/down/home.{c.address.device}/{down.head.id}.0.bundle", down.write())
    junk(stick / "causeway" / crowded, 31)
    for _ in range(100):
        done = b.stick(stick).take()
        assert done.refused <= 30, "of all folders together no more than of one"
        if done.carried:
            return
    raise AssertionError("a folder that somebody else filled hides this one for ever")


def test_junk_in_the_folder_does_not_have_a_share_given_twice(
    pair: tuple[Traveller, Traveller], stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch, 5)
    a, _ = pair
    a.say()
    assert a.stick(stick).export(urgent=True).fragments == 1
    junk(stick / "causeway" / "up", 100)
    for _ in range(5):
        again = a.stick(stick).export()
        assert (again.fragments, again.present) == (0, 1)


def test_what_takes_too_long_is_left_for_the_next_time(pair: tuple[Traveller, Traveller], stick: Path) -> None:
    _, b = pair
    junk(stick / "causeway" / "up", 20)
    hours = iter(range(0, 10_000, 20))
    done = FolderCarrier(b.custodian, None, stick, now=lambda: float(next(hours))).take()
    assert done.refused + done.left == 20
    assert 0 < done.refused < 5


def test_pieces_that_are_none_are_not_read_for_ever(
    pair: tuple[Traveller, Traveller], stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BAD_PIECES", 3)
    a, _ = pair
    pieces = stick / "causeway" / "pieces"
    good = hashlib.sha256(b"good").hexdigest()
    write_durable(piece_path(pieces, good), b"good")
    # In front of it by the name of its folder, and by its own.
    for number in range(10):
        for prefix in ("00", good[:2]):
            piece = piece_path(pieces, f"{prefix}{number:062x}")
            piece.parent.mkdir(exist_ok=True)
            piece.write_bytes(b"junk")
        (pieces / f"junk-{number}").mkdir()
    own, taken = PieceFolder(a.folder.pieces, max_bytes=1 << 20), 0
    for _ in range(200):
        done = a.stick(stick, own).take()
        taken += done.pieces
        assert done.refused == 3
        assert done.left == 18 - taken, "what was not looked at is counted"
        if taken:
            break
    assert taken == 1, "junk hides it for ever"
    assert done.reasons[0].startswith(("pieces/00/00000", f"pieces/{good[:2]}/{good[:2]}000"))


def test_a_device_that_carries_for_nobody_calls_nothing_bad_that_is_for_others(
    pair: tuple[Traveller, Traveller], stick: Path, tmp_path: Path
) -> None:
    a, _ = pair
    a.say()
    a.stick(stick).export(urgent=True)
    lonely = Traveller(a.realm, tmp_path / "lonely", "lonely", carry=False)
    done = lonely.stick(stick).take()
    assert (done.carried, done.refused) == (0, 0)
    lonely.close()


class Nobody:
    """A courier that takes nothing."""

    async def import_bundle(self, _frame: bytes, _waited_s: float = 0.0) -> BundleImportAnswer:
        return BundleImportAnswer(state="refused", reason="malformed", message="not a fragment")


async def test_the_platform_looks_at_so_many_and_says_what_it_left(
    stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch, 30)
    up = stick / "causeway" / "up"
    junk(up, 300, "{}.junk")
    junk(up, 70)
    report = await bring(Nobody(), BundleFolder(stick))
    assert (len(report.origins[0].reasons), report.left, report.refused) == (30, 40, True)
