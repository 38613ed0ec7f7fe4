"""Where artifacts live: bytes named by their sha256, in a folder or in an S3 bucket."""

from __future__ import annotations

from services.kit.artifacts.folder import FolderStore
from services.kit.artifacts.port import ArtifactStore, StoreError
from services.kit.artifacts.s3 import S3Store
from services.kit.folder import StateFolder
from services.kit.settings import Settings

__all__ = ["ArtifactStore", "FolderStore", "S3Store", "StoreError", "open_store"]


def open_store(state: StateFolder, settings: Settings) -> ArtifactStore:
    """The store that the settings name; nothing is connected before the first call.

    Raises:
        SettingsError: if the S3 credentials are missing or not two lines.
    """
    if settings.store.kind == "folder":
        return FolderStore(settings.store.folder or state.artifacts)
    return S3Store.from_settings(settings.store)
