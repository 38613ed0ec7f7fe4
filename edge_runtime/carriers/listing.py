"""What lies in a folder that somebody else may have filled: looked through within bounds, whatever the names."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from schemas.bundles import MAX_FRAGMENTS

MAX_NAMES = 1_000_000
"""Read of one folder; a quarter of a second for each 100,000."""
MAX_FILES = 8_192
"""Fragments and folders of devices looked at in one folder at a time."""
_BUNDLE = re.compile(r"([0-7][0-9A-HJKMNP-TV-Z]{25})\.([0-9]{1,2})\.bundle")
_DEVICE = re.compile(r"[A-Za-z0-9_-]{1,63}\.[A-Za-z0-9_-]{1,63}")


@dataclass(frozen=True, slots=True)
class Listed:
    """Some of the entries of a folder, in order.

    Attributes:
        left: how many more have such a name.
    """

    paths: list[Path]
    left: int = 0


def fragments(folder: Path, most: int = MAX_FILES) -> Listed:
    """Files that are named like fragments; follows no link."""
    return some(folder, lambda entry: _is_fragment(entry.name), most)


def devices(parent: Path, most: int = MAX_FILES) -> Listed:
    """Folders that are named like devices."""
    return some(parent, lambda entry: bool(_DEVICE.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False), most)


def some(folder: Path, wanted: Callable[[os.DirEntry[str]], bool], most: int = MAX_FILES) -> Listed:
    """Entries that are wanted, whatever else lies there. Raises OSError."""
    if folder.is_symlink() or not folder.is_dir():
        return Listed([])
    names: list[str] = []
    seen = 0
    with os.scandir(folder) as entries:
        for entry in itertools.islice(entries, MAX_NAMES):
            if not wanted(entry):
                continue
            seen += 1
            if len(names) < most:
                names.append(entry.name)
            elif (place := random.randrange(seen)) < most:  # noqa: S311 - no secret
                # Each has the same chance (Vitter's R): whoever filled the folder must not choose what is never seen.
                names[place] = entry.name
    return Listed([folder / name for name in sorted(names)], seen - len(names))


def _is_fragment(name: str) -> bool:
    match = _BUNDLE.fullmatch(name)
    return match is not None and int(match[2]) < MAX_FRAGMENTS
