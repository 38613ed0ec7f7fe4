"""Out of the platform: what waits for a device, and the pieces of the artifacts that its letters name."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel

from causeway.bundle.folder import BundleFolder
from causeway.bundle.pieces import ArtifactReport, Copier
from schemas.aggregator import Artifact
from schemas.ids import Address
from services.kit.api.courier import BundleExportAnswer
from services.kit.api.depot import ReleaseView
from services.kit.artifacts import StoreError
from services.kit.errors import NotFoundError, PlatformError, RefusedError

_ITS_OWN = frozenset({"not_found", "damaged"})
"""What ails one artifact and not the whole store."""
MAX_PAGES = 256
"""Bundles per device and export; no mailbox holds more letters."""


class Exporter(Protocol):
    """The part of an operator's session that exporting needs."""

    async def export_bundle(self, address: Address, after: int = 0) -> BundleExportAnswer:
        """A bundle with what waits for a device."""

    async def release(self, model: str, version: str | None = None) -> ReleaseView:
        """One release."""


class DeviceReport(BaseModel):
    """What was written for one device."""

    fleet: str
    device: str
    bundles: int = 0
    letters: int = 0
    receipts: int = 0
    trust: bool = False
    """Whether there is newer trust metadata for it."""
    artifacts: list[str] = []
    """sha256 of what its letters need."""


class LeftOut(BaseModel):
    """What could not be taken along."""

    fleet: str
    device: str
    release: str | None = None
    """`model version` that its letters name, which came without it; None: nothing was written for the device."""
    code: str
    message: str


class ExportReport(BaseModel):
    """What an export did."""

    devices: list[DeviceReport]
    artifacts: list[ArtifactReport]
    left_out: list[LeftOut] = []


async def fetch(
    platform: Exporter,
    copier: Copier,
    folder: BundleFolder,
    devices: Sequence[Address],
    releases: Sequence[tuple[str, str | None]] = (),
) -> ExportReport:
    """Export; what lies in the folder already is not copied again. What one device cannot have keeps no other waiting.

    Args:
        platform: where from.
        copier: brings pieces into the folder.
        folder: the folder.
        devices: for whom.
        releases: model and version (None: the newest) to take along, whether a letter names them or not.

    Raises:
        NotFoundError, RefusedError: if there is no such release among `releases`, or the folder has no room for it.
        PlatformError: if the platform does not answer; what was written is whole, and the next attempt goes on.
        OSError: if the folder cannot be written.
    """
    for model, version in releases:
        await copier.copy(_of_release(await platform.release(model, version)))
    reports: list[DeviceReport] = []
    left_out: list[LeftOut] = []
    for address in devices:
        try:
            reports.append(await _device(platform, copier, folder, address, left_out))
        except (NotFoundError, RefusedError, StoreError) as error:
            if isinstance(error, StoreError) and error.reason not in _ITS_OWN:
                raise
            left_out.append(_left_out(address, error))
    return ExportReport(devices=reports, artifacts=copier.reports(), left_out=left_out)


async def _device(
    platform: Exporter, copier: Copier, folder: BundleFolder, address: Address, left_out: list[LeftOut]
) -> DeviceReport:
    pages = [await platform.export_bundle(address)]
    while pages[-1].next is not None and len(pages) < MAX_PAGES:
        pages.append(await platform.export_bundle(address, pages[-1].next))
    needed = [artifact for page in pages for artifact in page.artifacts]
    for named in [release for page in pages for release in page.releases]:
        try:
            needed += _of_release(await platform.release(named.model, named.version))
        except NotFoundError as error:
            # Withdrawn since: the device finds so by its trust metadata, and says it to whoever assigned it.
            left_out.append(_left_out(address, error, f"{named.model} {named.version}"))
    # First, so that no stick brings a letter without what it names.
    await copier.copy(needed)
    report = DeviceReport(
        fleet=address.fleet,
        device=address.device,
        letters=sum(page.letters for page in pages),
        receipts=sum(page.receipts for page in pages),
        trust=any(page.trust for page in pages),
        artifacts=sorted({artifact.sha256 for artifact in needed}),
    )
    if not (report.letters or report.receipts or report.trust):
        return report
    before = folder.down(address)
    for page in pages:
        folder.put_down(address, page.bundle.bundle, [base64.b64decode(frame) for frame in page.bundle.frames])
    if report.receipts:
        # All that the former bundles said is said anew; without a receipt they may still bring one.
        for file in [file for files in before.values() for file in files]:
            file.path.unlink()
    return report.model_copy(update={"bundles": len(pages)})


def _left_out(address: Address, error: PlatformError, release: str | None = None) -> LeftOut:
    return LeftOut(fleet=address.fleet, device=address.device, release=release, code=error.code, message=str(error))


def _of_release(view: ReleaseView) -> list[Artifact]:
    smoke = view.custom.smoke
    if smoke is None:
        return [view.artifact]
    return [view.artifact, Artifact(sha256=smoke.sha256, length=smoke.length, recipe=smoke.recipe, pieces=smoke.pieces)]
