"""Models on disk: a folder per model, in it `state.json` and a folder per digest. Every write survives a power cut."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from edge_runtime.errors import InstallError
from edge_runtime.folder import sync_folder, write_durable
from edge_runtime.ota.state import SlotState
from schemas.errors import MessageError
from schemas.ids import check_identifier
from schemas.ota import ReleaseCustom

STATE = "state.json"
MODEL = "model.onnx"
SMOKE = "smoke.safetensors"
RELEASE = "release.json"
_CHUNK = 1 << 20


class Slots:
    """The durable side of `state.SlotState`.

    Args:
        root: `EdgeFolder.slots`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def models(self) -> list[str]:
        """Models that were ever assigned."""
        return sorted(path.parent.name for path in self.root.glob(f"*/{STATE}"))

    def state_file(self, model: str) -> Path:
        """The commit point of a model."""
        return self.root / check_identifier(model, "model") / STATE

    def load(self, model: str) -> SlotState:
        """What is known of a model; an empty state if it was never assigned.

        Raises:
            InstallError: `damaged_state` if the file does not hold what was written.
        """
        path = self.state_file(model)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return SlotState(slot=model)
        try:
            sealed = json.loads(raw)
            body = sealed["state"].encode()
            if hashlib.sha256(body).hexdigest() != sealed["sha256"]:
                raise InstallError(f"read {path}: its digest does not fit", reason="damaged_state")
            return SlotState.read(body)
        except (ValueError, KeyError, TypeError, AttributeError, MessageError) as error:
            raise InstallError(f"read {path}: {error!r}", reason="damaged_state") from error

    def store(self, state: SlotState) -> SlotState:
        """Put a state into effect; durable when this returns."""
        body = state.write().decode()
        sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "state": body}
        write_durable(self.state_file(state.slot), json.dumps(sealed).encode())
        return state

    def set_aside(self, model: str) -> Path:
        """Move a damaged state out of the way, for people to look at."""
        path = self.state_file(model)
        aside = path.with_name("state.damaged.json")
        path.replace(aside)
        sync_folder(path.parent)
        return aside

    def file(self, model: str, digest: str, name: str = MODEL) -> Path:
        """A file of a slot."""
        return self.root / check_identifier(model, "model") / digest / name

    def holds(self, model: str, digest: str) -> bool:
        """Whether a digest was staged whole: its model file comes last."""
        return self.file(model, digest).is_file()

    def stage(self, model: str, digest: str, release: ReleaseCustom, staged: Path, smoke: Path | None) -> None:
        """Move verified files into a slot; interrupted anywhere, it can be repeated."""
        folder = self.file(model, digest).parent
        write_durable(folder / RELEASE, release.write())
        if smoke is not None and smoke.exists():
            _move(smoke, folder / SMOKE)
        if staged.exists():
            _move(staged, folder / MODEL)
        sync_folder(folder)
        sync_folder(folder.parent)
        sync_folder(self.root)

    def release(self, model: str, digest: str) -> ReleaseCustom | None:
        """The signed facts that a slot was staged with; None if it is not staged."""
        try:
            return ReleaseCustom.read(self.file(model, digest, RELEASE).read_bytes())
        except FileNotFoundError:
            return None

    def prune(self, state: SlotState) -> None:
        """Remove the folders that the state does not need."""
        for folder in self.state_file(state.slot).parent.iterdir():
            if folder.is_dir() and folder.name not in state.kept:
                shutil.rmtree(folder)

    def drop(self, model: str, digest: str) -> None:
        """Remove a slot whose bytes turned out wrong."""
        shutil.rmtree(self.file(model, digest).parent, ignore_errors=True)


def digest_of(path: Path) -> tuple[str, int]:
    """sha256 and length of a file; blocks."""
    digest = hashlib.sha256()
    length = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            length += len(chunk)
    return digest.hexdigest(), length


def _move(source: Path, destination: Path) -> None:
    descriptor = os.open(source, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    source.replace(destination)
    sync_folder(source.parent)
