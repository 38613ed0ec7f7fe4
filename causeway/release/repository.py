"""The first trust metadata of a platform: keys, root, and targets with the service keys."""

from __future__ import annotations

from datetime import UTC, datetime

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile

from schemas.trust import SERVICES_TARGET, ServicesDocument
from services.depot.metadata import (
    SERVICES_FILE,
    TIMESTAMP_FILE,
    file_of,
    new_root,
    new_targets,
    signed_snapshot,
    signed_timestamp,
)
from services.depot.signers import make_signer
from services.kit.folder import StateFolder, make_private, write_private

OFFLINE_KEYS = ("root", "targets", "models")
FRESHNESS_KEYS = ("snapshot", "timestamp")


def create_repository(
    state: StateFolder, platform: str, services: ServicesDocument, now: datetime | None = None
) -> None:
    """Make the release and freshness keys and sign version 1 of everything.

    Development keys: each role has one key and a threshold of 1, and `models.pem` signs the releases of every model
    that is not given keys of its own. Offline keys lie in `keys/offline`, to be moved away in production.
    """
    moment = now or datetime.now(UTC)
    for folder in (state.offline_keys, state.freshness_keys, state.trust):
        make_private(folder)
    offline = {name: make_signer(state.offline_keys / f"{name}.pem") for name in OFFLINE_KEYS}
    fresh = {name: make_signer(state.freshness_keys / f"{name}.pem") for name in FRESHNESS_KEYS}
    document = services.model_dump_json().encode()
    files = {
        file_of("root", 1): _root(platform, {"root": offline["root"], "targets": offline["targets"], **fresh}, moment),
        file_of("targets", 1): _targets(document, offline["targets"], moment),
        file_of("snapshot", 1): signed_snapshot(1, 1, {}, moment, [fresh["snapshot"]]),
        SERVICES_FILE: document,
        TIMESTAMP_FILE: signed_timestamp(1, 1, moment, [fresh["timestamp"]]),
    }
    for name, data in files.items():
        write_private(state.trust / name, data)


def _root(platform: str, signers: dict[str, CryptoSigner], now: datetime) -> bytes:
    root = new_root(platform, now)
    for role, signer in signers.items():
        root.add_key(signer.public_key, role)
    metadata = Metadata(root)
    metadata.sign(signers["root"])
    return metadata.to_bytes()


def _targets(document: bytes, signer: CryptoSigner, now: datetime) -> bytes:
    targets = new_targets(now)
    targets.targets[SERVICES_TARGET] = TargetFile.from_data(SERVICES_TARGET, document, ["sha256"])
    metadata = Metadata(targets)
    metadata.sign(signer)
    return metadata.to_bytes()
