"""Into the platform: every bundle of a folder, each taken out of it only once its letters are stored."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from pydantic import BaseModel

from causeway.bundle.folder import BundleFile, BundleFolder
from edge_runtime.carriers.changes import allowed, remove
from schemas.ids import Address
from services.kit.api.courier import BundleFrames, BundleImportAnswer

DONE = frozenset({"stored", "known"})


class Importer(Protocol):
    """The part of an operator's session that importing needs."""

    async def import_bundle(self, frame: bytes, waited_s: float = 0.0) -> BundleImportAnswer:
        """Hand one fragment to the courier."""


class OriginReport(BaseModel):
    """What became of one device's bundles."""

    fleet: str | None
    device: str | None
    """None where nobody can say whose it is."""
    bundles: dict[str, int] = {}
    """How many, by what became of them: stored, known, early, incomplete or refused."""
    stored: int = 0
    duplicate: int = 0
    early: int = 0
    refused: int = 0
    reasons: list[str] = []
    """Why bundles were refused."""


class ImportReport(BaseModel):
    """What an import did."""

    origins: list[OriginReport]
    receipts: int
    """Devices for whom a receipt now lies in the folder."""
    left: int = 0
    """Files that were not looked at, since there were too many."""
    kept: int = 0
    """Files that are done with and still lie there, since the folder may only be read; receipts find no place then."""

    @property
    def refused(self) -> bool:
        """Whether a bundle was refused."""
        return any("refused" in origin.bundles for origin in self.origins)


async def bring(
    platform: Importer, folder: BundleFolder, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> ImportReport:
    """Import every bundle; safe to repeat, and to break off.

    Args:
        platform: where to.
        folder: the folder.
        progress: called with how many of how many bundles are done with.

    Raises:
        PlatformError: if the courier does not answer; what was not stored by then lies there as before.
        OSError: if the folder cannot be listed, or fails in writing; that it may only be read is no failure.
    """
    (waiting, left), ends, receipts = folder.up(), dict[str, BundleImportAnswer](), set[Address]()
    strays: dict[str, BundleImportAnswer] = {}
    total, before, kept = len(waiting), -1, 0
    # Again for as long as it helps: a bundle may have come before one that holds earlier letters.
    while waiting and len(waiting) != before:
        before = len(waiting)
        for bundle, files in list(waiting.items()):
            if bundle in ends and ends[bundle].state != "early":
                continue
            answer, own, refused = await _bring(platform, files)
            ends[bundle] = _sum(ends.get(bundle), answer)
            if refused:
                strays[bundle] = next(iter(refused.values()))
            if answer.state in DONE:
                if answer.receipt is not None and answer.fleet and answer.device:
                    address = Address(answer.fleet, answer.device)
                    if allowed(partial(_put_receipt, folder, address, answer.receipt)):
                        receipts.add(address)
                kept += sum(not remove(file.path) for file in own)
                del waiting[bundle]
            progress(total - len(waiting), total)
    # What lacks a part that was refused is told by that.
    settled = [answer for bundle, answer in ends.items() if answer.state != "held" or bundle not in strays]
    return ImportReport(origins=_by_origin([*settled, *strays.values()]), receipts=len(receipts), left=left, kept=kept)


async def _bring(
    platform: Importer, files: Iterable[BundleFile]
) -> tuple[BundleImportAnswer, list[BundleFile], dict[BundleFile, BundleImportAnswer]]:
    """What became of the bundle, its files, and what of those that are not of it: anybody may have put them there."""
    answer, refused = BundleImportAnswer(state="held"), dict[BundleFile, BundleImportAnswer]()
    origins: dict[BundleFile, tuple[str | None, str | None]] = {}
    for file in files:
        try:
            frame, lay_s = file.read(), file.lay_s(time.time())
        except OSError as error:
            told = f"{file.path.name}: it cannot be read: {error.strerror}; see that you may read it"
            refused[file] = BundleImportAnswer(state="refused", reason="unreadable", message=told)
            continue
        given = await platform.import_bundle(frame, lay_s)
        if given.state == "refused":
            why = given.message or given.reason
            refused[file] = given.model_copy(update={"message": f"{file.path.name}: {why}"})
        elif given.bundle != file.bundle:
            told = f"{file.path.name}: it holds a fragment of bundle {given.bundle}; give it its name back"
            refused[file] = given.model_copy(update={"state": "refused", "reason": "wrong_name", "message": told})
        else:
            origins[file] = given.fleet, given.device
            if answer.state not in DONE:
                answer = given
            if answer.state == "early":
                break
    # Another device may have chosen the same id.
    own = [file for file, origin in origins.items() if origin == (answer.fleet, answer.device)]
    return answer, own, refused


def _sum(before: BundleImportAnswer | None, now: BundleImportAnswer) -> BundleImportAnswer:
    """Letters that an earlier attempt stored are duplicates in the next."""
    stored = before.stored if before else 0
    duplicate = max(0, now.duplicate - stored)
    return now.model_copy(update={"stored": stored + now.stored, "duplicate": duplicate})


def _put_receipt(folder: BundleFolder, address: Address, receipt: BundleFrames) -> None:
    folder.put_down(address, receipt.bundle, [base64.b64decode(frame) for frame in receipt.frames])


def _by_origin(answers: Iterable[BundleImportAnswer]) -> list[OriginReport]:
    found: dict[tuple[str, str], list[BundleImportAnswer]] = {}
    for answer in answers:
        found.setdefault((answer.fleet or "", answer.device or ""), []).append(answer)
    return [_report(*name, found[name]) for name in sorted(found)]


def _report(fleet: str, device: str, answers: Sequence[BundleImportAnswer]) -> OriginReport:
    return OriginReport(
        fleet=fleet or None,
        device=device or None,
        bundles=dict(Counter("incomplete" if answer.state == "held" else answer.state for answer in answers)),
        stored=sum(answer.stored for answer in answers),
        duplicate=sum(answer.duplicate for answer in answers),
        early=sum(answer.early for answer in answers),
        refused=sum(answer.refused for answer in answers),
        reasons=[answer.message or "" for answer in answers if answer.state == "refused"],
    )
