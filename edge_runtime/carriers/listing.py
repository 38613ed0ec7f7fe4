"""What lies in a folder that somebody else may have filled: looked through within bounds, whatever the names."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.bundles import MAX_FRAGMENTS

MAX_NAMES = 1_000_000
"""Read at a time; a quarter of a second for each 100,000."""
MAX_FILES = 8_192
"""Fragments, or folders of devices, looked at at a time."""
_BUNDLE = re.compile(r"([0-7][0-9A-HJKMNP-TV-Z]{25})\.(0|[1-9][0-9]?)\.bundle")
_DEVICE = re.compile(r"[A-Za-z0-9_-]{1,63}\.[A-Za-z0-9_-]{1,63}")


@dataclass(frozen=True, slots=True)
class Listed:
    """Some of the entries of folders, in the order of their names.

    Attributes:
        left: how many more have such a name, and how many folders could not be read.
    """

    paths: list[Path]
    left: int = 0


def is_there(folder: Path) -> bool:
    """Whether a folder can be looked into; what lies behind a dead mount is not there."""
    try:
        return folder.is_dir()
    except OSError:
        return False


def read_name(name: str) -> tuple[str, int] | None:
    """Bundle and index of a file that is named like a fragment."""
    match = _BUNDLE.fullmatch(name)
    return (match[1], int(match[2])) if match is not None and int(match[2]) < MAX_FRAGMENTS else None


def fragments(*folders: Path) -> Listed:
    """Files that are named like fragments; follows no link."""
    return some(folders, lambda entry: read_name(entry.name) is not None)


def devices(parent: Path) -> Listed:
    """Folders that are named like devices."""
    return some([parent], lambda entry: bool(_DEVICE.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False))


def some(folders: Sequence[Path], wanted: Callable[[os.DirEntry[str]], bool]) -> Listed:
    """Entries that are wanted, of all folders together, whatever else lies there.

    Raises:
        OSError: if none of the folders can be read.
    """
    paths: list[Path] = []
    seen = read = 0
    unread: list[OSError] = []
    # Whoever fills folders must not choose what is never seen: neither by which comes first, nor within one, where each
    # entry has the same chance (Vitter's R).
    for folder in random.sample(folders, len(folders)):
        try:
            if folder.is_symlink() or not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in itertools.islice(entries, MAX_NAMES - read):
                    read += 1
                    if not wanted(entry):
                        continue
                    seen += 1
                    if len(paths) < MAX_FILES:
                        paths.append(folder / entry.name)
                    elif (place := random.randrange(seen)) < MAX_FILES:  # noqa: S311 - no secret
                        paths[place] = folder / entry.name
        except FileNotFoundError:
            continue  # it was taken away in between
        except OSError as error:
            unread.append(error)
    if unread and len(unread) == len(folders):
        raise unread[0]
    return Listed(sorted(paths, key=lambda path: (path.name, path)), seen - len(paths) + len(unread))
