"""Where a platform keeps its files."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from services.kit.errors import SettingsError

SERVICES = ("registry", "courier", "depot", "ota", "scheduler", "aggregator", "gateway")


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths of one platform's state. Folders are 0700, files 0600."""

    root: Path

    @property
    def settings(self) -> Path:
        """`settings.toml`."""
        return self.root / "settings.toml"

    @property
    def offline_keys(self) -> Path:
        """Root and targets keys; used by the CLI only, to be moved away in production."""
        return self.root / "keys" / "offline"

    @property
    def bus_keys(self) -> Path:
        """Operator and account nkeys; the registry mints and revokes with them."""
        return self.root / "keys" / "bus"

    def service_key(self, service: str) -> Path:
        """Seed of a service's letter key."""
        return self.root / "keys" / service / "letter.key"

    @property
    def neighbours_key(self) -> Path:
        """Key of the authority that devices recognise each other by; the registry's."""
        return self.root / "keys" / "registry" / "neighbours-ca.key"

    @property
    def neighbours_ca(self) -> Path:
        """Its certificate, which every device gets."""
        return self.root / "keys" / "registry" / "neighbours-ca.pem"

    @property
    def freshness_keys(self) -> Path:
        """Snapshot and timestamp keys; the depot's."""
        return self.root / "keys" / "depot"

    def creds(self, user: str) -> Path:
        """Bus credentials of a service, or of `operator` (the CLI) and `auditor`."""
        return self.root / "creds" / f"{user}.creds"

    @property
    def ca(self) -> Path:
        """Certificate authority and server certificate of both listeners."""
        return self.root / "ca"

    @property
    def nats_conf(self) -> Path:
        """Configuration of nats-server."""
        return self.root / "nats.conf"

    @property
    def nats_data(self) -> Path:
        """JetStream's store and the account resolver."""
        return self.root / "nats"

    @property
    def trust(self) -> Path:
        """The published TUF metadata; the depot writes, others read."""
        return self.root / "trust"

    @property
    def artifacts(self) -> Path:
        """The folder store, if the store is a folder."""
        return self.root / "artifacts"

    @property
    def logs(self) -> Path:
        """Logs of supervised processes."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Lock and process ids of a running platform."""
        return self.root / "run"

    def require(self) -> StateFolder:
        """Return self if `causeway init` was here.

        Raises:
            SettingsError: if not.
        """
        if not self.settings.is_file():
            raise SettingsError(
                f"open state folder {self.root}: there is no settings.toml; "
                f"make one with `causeway init --state {self.root}`"
            )
        return self


def default_root() -> Path:
    """`CAUSEWAY_STATE`, else `.causeway` in the working folder."""
    return Path(os.environ.get("CAUSEWAY_STATE", ".causeway")).absolute()


def make_private(folder: Path) -> Path:
    """Create a folder of mode 0700, with its parents."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, whole or not at all, durable when this returns."""
    make_private(path.parent) if not path.parent.exists() else None
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
