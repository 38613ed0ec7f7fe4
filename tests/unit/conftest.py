"""What several modules of unit tests begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.carriers import Realm, Traveller


@pytest.fixture
def realm() -> Realm:
    """One platform's keys."""
    return Realm()


def travellers(realm: Realm, folder: Path, *names: str) -> Iterator[list[Traveller]]:
    made = [Traveller(realm, folder / name, name) for name in names]
    yield made
    for traveller in made:
        traveller.close()


@pytest.fixture
def pair(realm: Realm, tmp_path: Path) -> Iterator[list[Traveller]]:
    """Devices that carry for each other."""
    yield from travellers(realm, tmp_path, "a", "b")


@pytest.fixture
def three(realm: Realm, tmp_path: Path) -> Iterator[list[Traveller]]:
    """Three of them."""
    yield from travellers(realm, tmp_path, "a", "b", "c")


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    """Somebody's empty one."""
    folder = tmp_path / "stick"
    folder.mkdir()
    return folder
