"""Where a device keeps its state, and files that survive a power cut."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EdgeFolder:
    """Paths of one device's state; folders 0700, files 0600."""

    root: Path

    @property
    def identity(self) -> Path:
        """`identity.json`: keys, credentials, platform. Secret."""
        return self.root / "identity.json"

    @property
    def outbox(self) -> Path:
        """SQLite: letters up."""
        return self.root / "outbox.db"

    @property
    def inbox(self) -> Path:
        """SQLite: letters down, revisions, floors."""
        return self.root / "inbox.db"

    @property
    def trust(self) -> Path:
        """TUF metadata and the verified services document."""
        return self.root / "trust"

    @property
    def slots(self) -> Path:
        """Models: one folder per model, in it `state.json` and one folder per digest."""
        return self.root / "slots"

    def models(self, limit: int = 16) -> list[str]:
        """Models that have a slot on this device."""
        if not self.slots.is_dir():
            return []
        return sorted(path.name for path in self.slots.iterdir() if path.is_dir())[:limit]

    @property
    def staging(self) -> Path:
        """Artifacts on their way in."""
        return self.root / "staging"

    @property
    def carriers(self) -> Path:
        """SQLite: fragments of bundles in custody."""
        return self.root / "carriers.db"

    @property
    def pieces(self) -> Path:
        """Pieces of artifacts that came by folder, by digest."""
        return self.root / "pieces"

    @property
    def lock(self) -> Path:
        """Held by the one agent that runs on this folder."""
        return self.root / "agent.lock"

    @property
    def status(self) -> Path:
        """`status.json`: what the agent last said of itself."""
        return self.root / "status.json"


def write_durable(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file: temporary, fsync, rename, fsync of the folder. Whole or not at all, durable when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.new")
    # What stands there was left by a crash, or planted by a stranger on a stick: a link to another file, or a pipe.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
