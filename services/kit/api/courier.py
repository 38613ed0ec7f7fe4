"""Verbs of the courier, answered by the active one: bundle_import, bundle_export, bundle_list, replay, lower."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from schemas.aggregator import Artifact
from schemas.bundles import MAX_FRAGMENTS, MAX_FRAME_BYTES, MAX_LIFETIME_S
from schemas.events import Lane
from schemas.ids import Count, Digest, Identifier, Ulid, Version
from services.kit.api.registry import RecalledLane

Frame = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=(MAX_FRAME_BYTES + 3) // 3 * 4)]
"""One fragment of a bundle as it travels (`schemas.bundles`), base64."""


class BundleFrames(BaseModel):
    """A whole bundle."""

    bundle: Ulid
    frames: list[Frame] = Field(min_length=1, max_length=MAX_FRAGMENTS)


class BundleImportRequest(BaseModel):
    """`bundle_import`: one fragment that an operator brought."""

    frame: Frame
    waited_s: float = Field(0.0, ge=0, le=2 * MAX_LIFETIME_S)
    """How long it lay in the folder, as far as clocks tell; part of its age."""


class BundleImportAnswer(BaseModel):
    """What `bundle_import` answers.

    Attributes:
        state: `held` until the bundle's other fragments come, `known` if its letters are stored already, `stored` if
            they are now, `early` if others before them are still missing, `refused`.
    """

    bundle: Ulid | None = None
    fragment: Count = 0
    fragments: Count = 0
    fleet: Identifier | None = None
    device: Identifier | None = None
    state: Literal["held", "known", "stored", "early", "refused"]
    stored: Count = 0
    duplicate: Count = 0
    early: Count = 0
    refused: Count = 0
    reason: str | None = None
    message: str | None = None
    receipt: BundleFrames | None = None
    """Brings the device its receipt; absent if the courier does not know the device's session."""


class BundleExportRequest(BaseModel):
    """`bundle_export`: what waits for a device, one bundle per request."""

    fleet: Identifier
    device: Identifier
    after: Count = 0
    """`next` of the request before."""


class NamedRelease(BaseModel):
    """A release that a waiting assignment names."""

    model: Identifier
    version: Version
    sha256: Digest


class BundleExportAnswer(BaseModel):
    """What `bundle_export` answers."""

    bundle: BundleFrames
    letters: Count
    receipts: Count
    trust: bool
    """Whether it brings trust metadata."""
    releases: list[NamedRelease]
    artifacts: list[Artifact]
    """What its letters need besides: the base models of rounds."""
    next: Count | None = None
    """More letters wait: ask again from here."""


MAX_REPLAYED = 64
"""Rejected letters in one request."""


class ReplayRequest(BaseModel):
    """`replay`: take rejected letters once more, as if they had just come. Answers with a list of `Replayed`."""

    sequences: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=MAX_REPLAYED)
    """Places in REJECTS."""


class Replayed(BaseModel):
    """What became of one.

    Attributes:
        outcome: `stored` in IN, in its place; `handed` on again, out of its place, to the service that reads its kind;
            `known`, since IN holds it already; `early` while a letter before it is missing; `refused` again.
    """

    sequence: int
    outcome: Literal["stored", "handed", "known", "early", "refused"]
    reason: str | None = None
    message: str | None = None


class LowerRequest(BaseModel):
    """`lower`: believe no more in marks that IN does not bear out; asked by the registry before a recall.

    Answers with `Lowered`.
    """

    fleet: Identifier
    device: Identifier
    lanes: list[Lane] = Field(min_length=1, max_length=3)
    first: int = Field(1, ge=1, le=2**53)
    """Letters from here on are wanted again."""
    force: bool = False
    """Even those that IN holds."""


class Lowered(BaseModel):
    """What `lower` answers: marks of the device's present epoch."""

    epoch: Ulid
    lanes: list[RecalledLane]


class BundleDevice(BaseModel):
    """What `bundle_list` answers per device that something waits for, or that speaks by bundles."""

    fleet: str
    device: str
    letters: int
    carried: bool
    """Whether a bundle of it came since this courier started."""
