"""The trust folder: every metadata file that ever held, by name. `timestamp.json` commits a publication."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from schemas.registry import TrustFloors
from schemas.trust import SERVICES_TARGET, ServicesDocument
from services.depot.metadata import PRIVATE_FIELD, SERVICES_FILE, TARGETS, TIMESTAMP_FILE, Head, file_of, role_of
from services.kit.errors import SettingsError
from services.kit.folder import write_private

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)

MAX_ROOTS = 256
"""As many rotations as a TUF client follows in one go."""


class Repository:
    """Reads the trust folder of a platform, and writes into it.

    A file that `timestamp.json` does not lead to does not count: what a crash left behind is simply written again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._head = self._load_head()

    @property
    def head(self) -> Head:
        """Versions that hold now."""
        return self._head

    @property
    def floors(self) -> TrustFloors:
        """The same, as a welcome carries them."""
        head = self._head
        return TrustFloors(root=head.root, timestamp=head.timestamp, snapshot=head.snapshot, targets=head.targets)

    @property
    def first_root_sha256(self) -> str:
        """Digest of `1.root.json`, which tokens pin."""
        return hashlib.sha256(self.file(file_of("root", 1))).hexdigest()

    @property
    def platform(self) -> str:
        """Platform that the root is for."""
        return str(self.root().unrecognized_fields[PRIVATE_FIELD]["platform"])

    def file(self, name: str) -> bytes:
        """Exact bytes of a file.

        Raises:
            SettingsError: if it is not there.
        """
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise SettingsError(
                f"read trust metadata {self._folder / name}: {error.strerror}; "
                "restore the trust folder from a backup, it cannot be made again without the release keys"
            ) from error

    def root(self) -> Root:
        """The newest root."""
        return self._signed(Root, file_of("root", self._head.root))

    def snapshot(self) -> Snapshot:
        """The snapshot that holds."""
        return self._signed(Snapshot, file_of("snapshot", self._head.snapshot))

    def timestamp(self) -> Timestamp:
        """The timestamp that holds."""
        return self._signed(Timestamp, TIMESTAMP_FILE)

    def targets(self) -> Targets:
        """The top-level targets that hold."""
        return self._signed(Targets, file_of(TARGETS, self._head.targets))

    def model(self, model: str) -> Targets | None:
        """The releases of a model; None if there is none."""
        version = self._head.roles.get(role_of(model))
        return None if version is None else self._signed(Targets, file_of(role_of(model), version))

    def services(self) -> bytes:
        """Bytes of `trust/services.json` as the targets name it.

        Raises:
            SettingsError: if no stored file has the signed digest.
        """
        wanted = self.targets().targets[SERVICES_TARGET].hashes["sha256"]
        for name in (f"{wanted}.{SERVICES_FILE}", SERVICES_FILE):
            path = self._folder / name
            if path.is_file() and hashlib.sha256(raw := path.read_bytes()).hexdigest() == wanted:
                return raw
        raise SettingsError(f"read {self._folder / SERVICES_FILE}: no file has the signed digest {wanted}; restore it")

    def document(self) -> ServicesDocument:
        """The service keys that hold."""
        return ServicesDocument.read(self.services())

    def write(self, name: str, data: bytes) -> None:
        """Store a file; durable when this returns, in effect once a timestamp leads to it."""
        write_private(self._folder / name, data)

    def write_services(self, data: bytes) -> None:
        """Store a services document beside the one that holds."""
        self.write(f"{hashlib.sha256(data).hexdigest()}.{SERVICES_FILE}", data)

    def reload(self) -> None:
        """Look again at what holds; a root holds as soon as it is written."""
        self._head = self._load_head()

    def commit(self, timestamp: bytes) -> None:
        """Put a timestamp, and all that it leads to, into effect."""
        self.write(TIMESTAMP_FILE, timestamp)
        self.reload()
        self.write(SERVICES_FILE, self.services())

    def _load_head(self) -> Head:
        timestamp = self._signed(Timestamp, TIMESTAMP_FILE)
        number = timestamp.snapshot_meta.version
        snapshot = self._signed(Snapshot, file_of("snapshot", number))
        versions = {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}
        targets = versions.pop(TARGETS)
        return Head(self._newest_root(), timestamp.version, number, targets, versions)

    def _newest_root(self) -> int:
        version = 0
        while version < MAX_ROOTS and (self._folder / file_of("root", version + 1)).is_file():
            version += 1
        return version

    def _signed(self, kind: type[T], name: str) -> T:
        try:
            metadata: Metadata[T] = Metadata.from_bytes(self.file(name))
        except (DeserializationError, RepositoryError) as error:
            raise SettingsError(
                f"read trust metadata {self._folder / name}: {error}; restore it from a backup"
            ) from error
        if not isinstance(metadata.signed, kind):
            raise SettingsError(f"read trust metadata {self._folder / name}: it is {metadata.signed.type} metadata")
        return metadata.signed
