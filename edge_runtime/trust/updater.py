"""An unmodified TUF client (python-tuf's `Updater`, TUF 5) over files in memory, with the device's own clock."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from edge_runtime.errors import TrustError
from schemas.depot import MAX_TRUST_EXPANDED_BYTES

_BASE = "pack:///"
_HISTORY = "root_history"


class PackFetcher(FetcherInterface):
    """Serves files by name; what is missing is a 404, which ends a root chain and fails anything else."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._files.get(url.removeprefix(_BASE))
        if data is None:
            raise DownloadHTTPError(f"{url.removeprefix(_BASE)} is neither in the pack nor in the cache", 404)
        return iter([data])


class Verified:
    """Metadata that a TUF client believes at one moment."""

    def __init__(self, updater: Updater, folder: Path, now: datetime) -> None:
        self._updater = updater
        self._now = now
        self._folder = folder
        self._roles: dict[str, int] = {}
        self.root: Root = self._signed("root")
        self.timestamp: Timestamp = self._signed("timestamp")
        self.snapshot: Snapshot = self._signed("snapshot")
        self.targets: Targets = self._signed("targets")

    @property
    def roles(self) -> dict[str, int]:
        """Versions of the delegated roles that were verified so far."""
        return dict(self._roles)

    def version_of(self, role: str) -> int | None:
        """Version of a delegated role that the snapshot names; None if it names none."""
        meta = self.snapshot.meta.get(f"{role}.json")
        return None if meta is None else meta.version

    def past_root(self, version: int) -> Root | None:
        """A root of the chain from the pinned one on."""
        path = self._folder / _HISTORY / f"{version}.root.json"
        if version > self.root.version or not path.exists():
            return None
        return Metadata[Root].from_bytes(path.read_bytes()).signed

    def target(self, path: str) -> TargetFile | None:
        """What the most trusted role says about a target; None if none does. Loads the roles on the way.

        Raises:
            TrustError: if a role does not verify, has expired, or is neither in the pack nor in the cache.
        """
        with _explained(f"look up target {path}"):
            return self._updater.get_targetinfo(path)

    def role(self, name: str, inside: str) -> Targets:
        """A delegated role, verified along its delegation.

        Args:
            name: of the role.
            inside: any target path that the role may sign; TUF finds roles by the paths that they sign.

        Raises:
            TrustError: as `target`; `unknown_target` if nothing is delegated to the role (any more).
        """
        delegations = self.targets.delegations
        if delegations is None or name not in (delegations.roles or {}):
            raise TrustError(f"verify role {name}: nothing is delegated to it", reason="unknown_target")
        self.target(inside)
        with _explained(f"verify role {name}"):
            # The walk may have ended in another role before it came to this one, so what lies there is checked again.
            metadata: Metadata[Targets] = Metadata.from_bytes(self._bytes(name))
            self.targets.verify_delegate(name, metadata.signed_bytes, metadata.signatures)
            if metadata.signed.version != self.version_of(name):
                raise BadVersionNumberError(f"version {metadata.signed.version}, not {self.version_of(name)}")
            if metadata.signed.is_expired(self._now):
                raise ExpiredMetadataError(f"{name} is expired")
        self._roles[name] = metadata.signed.version
        return metadata.signed

    def files(self) -> dict[str, bytes]:
        """Every file that was verified, by the name that packs use."""
        named = {}
        for version in range(1, self.root.version + 1):
            path = self._folder / _HISTORY / f"{version}.root.json"
            if path.exists():
                named[path.name] = path.read_bytes()
        versions = {"snapshot": self.snapshot.version, "targets": self.targets.version, **self._roles}
        named |= {f"{version}.{role}.json": self._bytes(role) for role, version in versions.items()}
        named["timestamp.json"] = self._bytes("timestamp")
        return named

    def _bytes(self, role: str) -> bytes:
        return (self._folder / f"{role}.json").read_bytes()

    def _signed(self, role: str) -> Any:
        return Metadata.from_bytes(self._bytes(role)).signed


@contextmanager
def refreshed(
    held: Mapping[str, bytes], offered: Mapping[str, bytes], bootstrap: bytes, now: datetime
) -> Iterator[Verified]:
    """Run the TUF client's workflow over what is held and what is offered, as of `now`.

    It works in a scratch folder that vanishes: tuf 7.0.1 never fsyncs, and makes symlinks, which vfat lacks.

    Args:
        held: verified files of an earlier refresh, which protect from rollback.
        offered: files of a pack.
        bootstrap: the pinned root.
        now: what "expired" is measured by; tuf takes no clock, so its reference time is set here and nowhere else.

    Raises:
        TrustError: `expired`, `bad_signature`, `rollback`, `missing_metadata` or `bad_metadata`.
    """
    with tempfile.TemporaryDirectory(prefix="causeway-trust-") as name:
        folder = Path(name)
        _lay_out(folder, held)
        with _explained("verify trust metadata"):
            updater = Updater(
                name,
                _BASE,
                fetcher=PackFetcher({**held, **offered}),
                config=UpdaterConfig(
                    root_max_length=MAX_TRUST_EXPANDED_BYTES,
                    timestamp_max_length=16_384,
                    snapshot_max_length=MAX_TRUST_EXPANDED_BYTES,
                    targets_max_length=MAX_TRUST_EXPANDED_BYTES,
                ),
                bootstrap=bootstrap,
            )
            _set_clock(updater, now)
            updater.refresh()
        yield Verified(updater, folder, now)


def _lay_out(folder: Path, held: Mapping[str, bytes]) -> None:
    (folder / _HISTORY).mkdir()
    for name, raw in held.items():
        if name.endswith(".root.json"):
            (folder / _HISTORY / name).write_bytes(raw)
        else:
            # tuf's cache has names without versions.
            (folder / (name if name == "timestamp.json" else name.split(".", 1)[1])).write_bytes(raw)


def _set_clock(updater: Updater, now: datetime) -> None:
    trusted = updater._trusted_set  # noqa: SLF001
    if not isinstance(getattr(trusted, "reference_time", None), datetime):
        raise TrustError(
            "set the clock of the TUF client: this version of tuf keeps its reference time elsewhere; "
            "install the pinned version",
            reason="clock",
        )
    trusted.reference_time = now


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except ExpiredMetadataError as error:
        raise TrustError(
            f"{what}: {error}; connect the device, or let its depot sign anew", reason="expired"
        ) from error
    except UnsignedMetadataError as error:
        raise TrustError(f"{what}: {error}", reason="bad_signature") from error
    except DownloadHTTPError as error:
        raise TrustError(f"{what}: {error}; ask the depot for trust", reason="missing_metadata") from error
    except (RepositoryError, DownloadError, DeserializationError, OSError, ValueError, KeyError) as error:
        reason = "rollback" if isinstance(error, BadVersionNumberError) else "bad_metadata"
        raise TrustError(f"{what}: {error}", reason=reason) from error
