"""The folder that travels.

    causeway/up/ID.INDEX.bundle                  from devices to the platform
    causeway/down/FLEET.DEVICE/ID.INDEX.bundle   from the platform to one device
    causeway/pieces/AA/SHA256                    pieces of artifacts and their recipes, by digest

Files are written whole or not at all, so that a stick may be drawn at any time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.carriers.listing import fragments, read_name
from edge_runtime.carriers.pieces import read_piece_file
from edge_runtime.folder import write_durable
from schemas.bundles import MAX_FRAME_BYTES, MAX_LIFETIME_S
from schemas.ids import Address
from services.kit.errors import RefusedError

_MODE = 0o644
"""Nothing in it is secret: bundles are sealed, and pieces are named by signed digests."""


@dataclass(frozen=True, slots=True, order=True)
class BundleFile:
    """One fragment in the folder."""

    bundle: str
    index: int
    path: Path

    def read(self) -> bytes:
        """The frame; cut where it is too long to be one. Raises OSError."""
        # Between listing and reading, something else may have taken its place.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(MAX_FRAME_BYTES + 1)

    def lay_s(self, now: float) -> float:
        """How long it has been there, as far as the clocks of both ends agree. Raises OSError."""
        return min(max(0.0, now - self.path.lstat().st_mtime), 2.0 * MAX_LIFETIME_S)


@dataclass(frozen=True, slots=True)
class BundleFolder:
    """One folder, in which nothing need be yet."""

    root: Path

    @property
    def base(self) -> Path:
        """What belongs to Causeway in it."""
        return self.root / "causeway"

    def up(self) -> tuple[dict[str, list[BundleFile]], int]:
        """Fragments for the platform by bundle, the bundle that was made first in front; and how many are too many.

        Those that are left are looked at another time.
        """
        return _listed(self.base / "up")

    def down(self, address: Address) -> dict[str, list[BundleFile]]:
        """Fragments for a device by bundle."""
        return _listed(self._down(address))[0]

    def put_down(self, address: Address, bundle: str, frames: list[bytes]) -> None:
        """Write all fragments of a bundle for a device."""
        for index, frame in enumerate(frames):
            self._write(self._down(address) / f"{bundle}.{index}.bundle", frame)

    def holds(self, sha256: str, length: int) -> bool:
        """Whether a piece lies there; not read, since a device checks every byte that it takes."""
        path = self._piece(sha256)
        return path.is_file() and path.stat().st_size == length

    def put_piece(self, sha256: str, data: bytes) -> None:
        """Write a piece."""
        self._write(self._piece(sha256), data)

    def recipe(self, sha256: str) -> bytes | None:
        """A recipe that lies there whole; None if it does not."""
        return read_piece_file(self.base / "pieces", sha256)

    def _write(self, path: Path, data: bytes) -> None:
        for folder in path.parents:
            if folder == self.root:
                break
            if folder.is_symlink():
                # Whoever prepared the stick must not choose where the operator writes.
                raise RefusedError(f"write {path}: {folder} is a link; delete it, or take another stick")
        try:
            write_durable(path, data, _MODE)
        except OSError as error:
            # A full disk does not name the file.
            error.filename = error.filename or str(path)
            raise

    def _down(self, address: Address) -> Path:
        return self.base / "down" / f"{address.fleet}.{address.device}"

    def _piece(self, sha256: str) -> Path:
        return self.base / "pieces" / sha256[:2] / sha256


def _listed(folder: Path) -> tuple[dict[str, list[BundleFile]], int]:
    found: dict[str, list[BundleFile]] = {}
    listed = fragments(folder)
    for path in listed.paths:
        named = read_name(path.name)
        if named is not None and path.is_file() and not path.is_symlink():
            found.setdefault(named[0], []).append(BundleFile(*named, path))
    return {bundle: sorted(found[bundle]) for bundle in sorted(found)}, listed.left
