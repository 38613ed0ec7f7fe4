"""What must outlive the process while letters are in memory: how far the numbers went, and what was receipted.

Without it, a device that dies on a full disk would find out from the courier that more was sent than it knows of, and
would have to send all again that the file calls waiting. A small file whose blocks were taken while there was room is
overwritten in place, in two halves by turns, so that one of them is whole at any time. On a read-only disk there is no
such file to write to.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_runtime.logs import Log
from schemas.events import Lane

log = Log(__name__)

HALF_BYTES = 2_048
_DIGEST_BYTES = 64

LaneRow = tuple[str, Lane, int, int]
"""Epoch, lane, issued, mark."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """State of an annex.

    Attributes:
        annex: id of the annex; the file notes it when the annex has been moved back.
        epoch: the present one.
        file_epoch: the file's, None if it could not be read.
        base: highest sequence of each lane that stood in the file.
        lanes: of the present epoch and of the file's.
    """

    annex: str
    epoch: str
    file_epoch: str | None
    base: dict[Lane, int]
    lanes: list[LaneRow]


class Boat:
    """The file beside the outbox. It never fails: a disk that does not take it is no worse than without it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = 0

    def reserve(self) -> None:
        """Take the blocks while there is room for them."""
        try:
            if not self._path.exists() or self._path.stat().st_size < 2 * HALF_BYTES:
                self._write(bytes(2 * HALF_BYTES), 0, os.O_CREAT)
        except OSError as error:
            log.info("outbox.no_boat", message=str(error))

    def load(self) -> Manifest | None:
        """What was saved last; None if nothing was."""
        try:
            raw = self._path.read_bytes()
        except OSError:
            return None
        halves = [_read(raw[start : start + HALF_BYTES]) for start in (0, HALF_BYTES)]
        found = max((half for half in halves if half is not None), key=lambda half: half[0], default=None)
        if found is None:
            return None
        self._turn, fields = found
        lanes: list[LaneRow] = [(row[0], row[1], row[2], row[3]) for row in fields["lanes"]]
        return Manifest(fields["annex"], fields["epoch"], fields["file_epoch"], fields["base"], lanes)

    def annex(self) -> str | None:
        """Whose state it holds: an older annex's, if it could not be written since."""
        manifest = self.load()
        return None if manifest is None else manifest.annex

    def save(self, manifest: Manifest) -> bool:
        """On disk when this returns, if the disk takes it; False if not."""
        text = json.dumps([self._turn + 1, asdict(manifest)]).encode()
        assert len(text) <= HALF_BYTES - _DIGEST_BYTES, "two epochs of three lanes each"
        self._turn += 1
        half = (hashlib.sha256(text).hexdigest().encode() + text).ljust(HALF_BYTES, b"\0")
        try:
            self._write(half, HALF_BYTES * (self._turn % 2))
        except OSError as error:
            log.debug("outbox.boat_not_written", message=str(error))
            return False
        return True

    def _write(self, data: bytes, at: int, flags: int = 0) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
        try:
            os.pwrite(descriptor, data, at)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(half: bytes) -> tuple[int, dict[str, Any]] | None:
    digest, text = half[:_DIGEST_BYTES], half[_DIGEST_BYTES:].rstrip(b"\0")
    if not text or hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    turn, fields = json.loads(text)
    return int(turn), fields
