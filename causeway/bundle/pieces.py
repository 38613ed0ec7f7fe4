"""Pieces of artifacts from the store into the folder, those that do not lie there yet."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from causeway.bundle.folder import BundleFolder
from schemas.aggregator import Artifact
from schemas.depot import RECIPE_ENTRY_BYTES, read_recipe
from services.kit.artifacts import ArtifactStore, StoreError
from services.kit.errors import RefusedError

SPAN_BYTES = 8 << 20
"""Read from the store at a time."""
SPARE_BYTES = 1 << 20
"""Left free in the folder, for letters."""

Progress = Callable[[int, int], None]


class ArtifactReport(BaseModel):
    """What was written of one artifact."""

    sha256: str
    pieces: int
    copied: int
    """Pieces that were not in the folder yet."""
    bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece and its place in the artifact."""

    sha256: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Job:
    artifact: Artifact
    recipe: bytes
    known: bool
    """Whether the recipe lies there already."""
    missing: list[Piece]

    @property
    def bytes(self) -> int:
        return sum(piece.length for piece in self.missing)


class Copier:
    """Copies each artifact once.

    Args:
        store: where the platform keeps artifacts.
        folder: where to.
        progress: called with how many of how many bytes are written.
    """

    def __init__(
        self, store: ArtifactStore, folder: BundleFolder, progress: Progress = lambda _done, _all: None
    ) -> None:
        self._store = store
        self._folder = folder
        self._progress = progress
        self._done = 0
        self._total = 0
        self._reports: dict[str, ArtifactReport] = {}

    def reports(self) -> list[ArtifactReport]:
        """What was done so far."""
        return list(self._reports.values())

    async def copy(self, artifacts: Iterable[Artifact]) -> None:
        """Have all pieces of these artifacts in the folder, and their recipes.

        Raises:
            StoreError: if the store does not have one, or what it has is damaged.
            RefusedError: if the folder has no room.
            OSError: if it cannot be written.
        """
        fresh = {artifact.recipe: artifact for artifact in artifacts if artifact.recipe not in self._reports}
        jobs = [await self._job(artifact) for artifact in fresh.values()]
        wanted = sum(job.bytes for job in jobs)
        self._check_room(wanted)
        self._total += wanted
        for job in jobs:
            await self._copy(job)

    async def _job(self, artifact: Artifact) -> _Job:
        lying = self._folder.recipe(artifact.recipe)
        if lying is not None:
            raw = lying
        else:
            raw = await self._store.open_range(artifact.recipe, 0, artifact.pieces * RECIPE_ENTRY_BYTES)
            _check(artifact.recipe, artifact.recipe, raw)
        missing = {piece.sha256: piece for piece in places(raw) if not self._folder.holds(piece.sha256, piece.length)}
        return _Job(artifact, raw, lying is not None, list(missing.values()))

    async def _copy(self, job: _Job) -> None:
        for span in spans(job.missing):
            start, end = span[0].offset, span[-1].offset + span[-1].length
            data = await self._store.open_range(job.artifact.sha256, start, end - start)
            for piece in span:
                part = data[piece.offset - start : piece.offset - start + piece.length]
                _check(job.artifact.sha256, piece.sha256, part)
                await asyncio.to_thread(self._folder.put_piece, piece.sha256, part)
                self._done += piece.length
                self._progress(self._done, self._total)
        if not job.known:
            # Last: where a recipe lies, all that it names was written once.
            self._folder.put_piece(job.artifact.recipe, job.recipe)
        self._reports[job.artifact.recipe] = ArtifactReport(
            sha256=job.artifact.sha256, pieces=job.artifact.pieces, copied=len(job.missing), bytes=job.bytes
        )

    def _check_room(self, wanted: int) -> None:
        if not wanted:
            return
        self._folder.base.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder.base).free
        if wanted + SPARE_BYTES > free:
            raise RefusedError(
                f"copy pieces to {self._folder.root}: {wanted} bytes are missing and {free} are free; make room"
            )


def places(recipe: bytes) -> Iterator[Piece]:
    """Pieces of a recipe with their offsets. Raises MessageError if it is not one."""
    offset = 0
    for entry in read_recipe(recipe):
        yield Piece(entry.sha256, offset, entry.length)
        offset += entry.length


def spans(pieces: Sequence[Piece], limit: int = SPAN_BYTES) -> Iterator[list[Piece]]:
    """Pieces that lie side by side, in runs of at most `limit` bytes."""
    run: list[Piece] = []
    for piece in pieces:
        if run and (
            piece.offset != run[-1].offset + run[-1].length or piece.offset + piece.length - run[0].offset > limit
        ):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _check(artifact: str, sha256: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError("read", artifact, "damaged", "a part of it is not what was signed; store the file again")
