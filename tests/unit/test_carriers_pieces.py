"""Pieces of models out of a folder: a stick, or a synced directory that is read in place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edge_runtime.carriers.pieces import PieceFolder, piece_files, piece_path
from edge_runtime.parcels.fetching import PieceFetcher
from tests.support.carriers import Traveller, pieces_on


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
