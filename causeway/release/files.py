"""The one file that travels between the people who stage, sign and publish a release."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets
from tuf.api.serialization import DeserializationError

from schemas.ids import Digest, Identifier, Ulid, Version
from schemas.wording import problems
from services.kit.errors import SettingsError
from services.kit.folder import write_private

MAX_BYTES = 4 << 20


class LocalArtifact(BaseModel):
    """A file that `publish` uploads, and the digest that it must still have then."""

    path: Path
    sha256: Digest


class StagedRole(BaseModel):
    """New metadata of one role, and who may sign it. The depot decides by itself whether the signatures suffice."""

    role: str
    keyids: list[Digest]
    threshold: int
    metadata: dict[str, Any]

    def parsed(self) -> Metadata[Targets]:
        """The metadata, for signing and publishing.

        Raises:
            SettingsError: if somebody damaged it.
        """
        try:
            # from_dict takes its argument apart.
            return Metadata.from_dict(copy.deepcopy(self.metadata))
        except (DeserializationError, RepositoryError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"read role {self.role} of the release file: {error!r}; stage it again") from error

    @property
    def missing(self) -> int:
        """Signatures that are still wanted."""
        signed = {signature["keyid"] for signature in self.metadata.get("signatures", [])}
        return max(0, self.threshold - len(signed & set(self.keyids)))


class ReleaseFile(BaseModel):
    """What `stage` writes, `sign` adds to and `publish` sends."""

    model_config = ConfigDict(extra="forbid")

    v: Literal[1] = 1
    platform: Ulid
    model: Identifier
    version: Version | None
    """None: only a floor is raised or a version revoked."""
    diff: list[str]
    """What the signatures bring about, for people."""
    roles: dict[str, StagedRole]
    """By file name in the trust folder."""
    artifacts: list[LocalArtifact]

    @property
    def missing(self) -> list[str]:
        """One sentence per role that lacks signatures."""
        return [
            f"{role.role} lacks {role.missing} of {role.threshold} signatures, by "
            + " or ".join(keyid[:12] for keyid in role.keyids)
            for role in self.roles.values()
            if role.missing
        ]


def read_release(path: Path) -> ReleaseFile:
    """Read a release file.

    Raises:
        SettingsError: if it is missing, too large, or not a release file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"read release file {path}: it exceeds {MAX_BYTES} bytes")
        return ReleaseFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(
            f"read release file {path}: {error.strerror}; `causeway release stage` writes it"
        ) from error
    except ValidationError as error:
        raise SettingsError(f"read release file {path}: {problems(error)}; stage it again") from error


def write_release(path: Path, release: ReleaseFile) -> None:
    """Write a release file."""
    write_private(path.absolute(), json.dumps(release.model_dump(mode="json"), indent=2).encode() + b"\n")
