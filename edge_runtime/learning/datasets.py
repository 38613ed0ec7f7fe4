"""How many samples a local dataset has, from the header of its `.npz` alone: no numpy in the resident process."""

from __future__ import annotations

import ast
import re
import struct
import zipfile
from pathlib import Path

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 65_536
_SHAPE = re.compile(r"'shape':\s*(\([0-9, ]*\))")


def sample_count(path: Path) -> int | None:
    """Length of the first axis of array `x`; None if the file is missing or is no such dataset."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as member:
            if member.read(6) != _MAGIC:
                return None
            major = member.read(2)[0]
            size = "<H" if major == 1 else "<I"
            (length,) = struct.unpack(size, member.read(struct.calcsize(size)))
            if length > _MAX_HEADER:
                return None
            header = member.read(length).decode("latin-1")
    except (OSError, KeyError, zipfile.BadZipFile, struct.error, IndexError):
        return None
    match = _SHAPE.search(header)
    shape = ast.literal_eval(match[1]) if match else ()
    return int(shape[0]) if shape else None


class Datasets:
    """Counts of all local datasets, read again when a file changes."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = paths
        self._known: dict[str, tuple[tuple[int, int], int]] = {}

    def counts(self) -> dict[str, int]:
        """Samples per dataset; one that cannot be read is left out."""
        counts = {}
        for name, path in self._paths.items():
            try:
                stat = path.stat()
            except OSError:
                continue
            stamp = (stat.st_mtime_ns, stat.st_size)
            known = self._known.get(name)
            if known is None or known[0] != stamp:
                count = sample_count(path)
                if count is None:
                    continue
                known = self._known[name] = (stamp, count)
            counts[name] = known[1]
        return counts
