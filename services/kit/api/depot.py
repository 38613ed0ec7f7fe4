"""Verbs of the depot: register, publish, trust, pack, list, show."""

from __future__ import annotations

from pydantic import BaseModel, Field

from schemas.aggregator import Artifact
from schemas.depot import TrustState
from schemas.ids import Digest, Identifier, Version
from schemas.ota import ReleaseCustom
from schemas.registry import TrustFloors


class RegisterRequest(BaseModel):
    """`register`: cut an artifact that is in the store into pieces. Answers with `schemas.aggregator.Artifact`."""

    sha256: Digest


class PublishRequest(BaseModel):
    """`publish`: take over finished metadata files, by file name as in the trust folder (`2.root.json`)."""

    files: dict[str, str] = Field(min_length=1, max_length=64)


class TrustAnswer(BaseModel):
    """What `trust` answers: the newest versions."""

    head: TrustState
    floors: TrustFloors
    root_sha256: Digest
    """Of `1.root.json`, which tokens pin."""


class PackRequest(BaseModel):
    """`pack`: what brings a device from the versions that it holds to the newest, for one that bundles travel to."""

    held: TrustState


class PackAnswer(BaseModel):
    """What `pack` answers."""

    pack: str | None = None
    """zstd of a `schemas.depot.TrustPack`, base64; None if the device holds the newest."""


class ReleaseRequest(BaseModel):
    """`show`: one release; version absent: the newest."""

    model: Identifier
    version: Version | None = None


class ReleaseView(BaseModel):
    """What `list` and `show` answer per release."""

    model: str
    version: str
    target: str
    artifact: Artifact
    custom: ReleaseCustom
    floor: int = 0
    """The model's floor: nothing with a lower `seq` is installed any more."""
    revoked: bool = False


class PublishAnswer(BaseModel):
    """What `publish` answers: what holds now, and the releases that are new."""

    head: TrustState
    releases: list[ReleaseView]


class ReleaseEvent(BaseModel):
    """Event `release`: a release that is installable from now on."""

    release: ReleaseView


class TrustEvent(BaseModel):
    """Event `trust`: the versions that hold from now on."""

    head: TrustState


def release_key(model: str, version: str) -> str:
    """Key of a release in bucket `releases`; keys there hold no `+`, and no version holds a `=`."""
    return f"{model}.{version.replace('+', '=')}"
