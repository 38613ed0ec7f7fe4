"""Cutting: the same bytes, the same pieces; a small change, few new pieces."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from schemas.depot import read_recipe
from services.kit.artifacts import recipe as recipes
from services.kit.artifacts.recipe import MAX_BYTES, MIN_BYTES, cut
from services.kit.errors import RefusedError


def test_pieces_make_the_artifact_and_have_bounded_sizes(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3_000_000)
    (tmp_path / "f").write_bytes(data)
    recipe = cut(tmp_path / "f")
    entries = read_recipe(recipe.raw)
    assert recipe.sha256 == hashlib.sha256(data).hexdigest()
    assert recipe.digest == hashlib.sha256(recipe.raw).hexdigest()
    assert (recipe.artifact.length, recipe.artifact.pieces) == (len(data), len(entries))
    offset = 0
    for entry in entries:
        assert hashlib.sha256(data[offset : offset + entry.length]).hexdigest() == entry.sha256
        offset += entry.length
    assert offset == len(data)
    assert all(MIN_BYTES <= entry.length <= MAX_BYTES for entry in entries[:-1])
    assert cut(tmp_path / "f") == recipe


def test_an_insertion_costs_few_new_pieces(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(4_000_000)
    (tmp_path / "old").write_bytes(data)
    (tmp_path / "new").write_bytes(data[:1_000_000] + b"a longer header" + data[1_000_000:])
    old = {entry.sha256 for entry in read_recipe(cut(tmp_path / "old").raw)}
    new = {entry.sha256 for entry in read_recipe(cut(tmp_path / "new").raw)}
    assert len(new - old) <= 3


def test_the_smallest_artifact_has_one_piece(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    assert cut(tmp_path / "f").pieces == 1


def test_an_empty_or_too_large_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(recipes.MAX_PIECES * MAX_BYTES + 1)
    for name in ("empty", "large"):
        with pytest.raises(RefusedError, match="an artifact has 1 to"):
            cut(tmp_path / name)


def test_very_large_artifacts_get_fixed_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "CONTENT_DEFINED_UP_TO", 1_000_000)
    (tmp_path / "f").write_bytes(bytes(1_000_001))
    assert [entry.length for entry in read_recipe(cut(tmp_path / "f").raw)] == [MAX_BYTES] * 3 + [
        1_000_001 - 3 * MAX_BYTES
    ]
