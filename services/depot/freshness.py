"""Keeps snapshot and timestamp fresh: signs them anew before they end, and after every publication."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root

from services.depot.metadata import (
    SNAPSHOT_RENEWAL,
    TIMESTAMP_FILE,
    TIMESTAMP_RENEWAL,
    file_of,
    signed_snapshot,
    signed_timestamp,
)
from services.depot.repository import Repository
from services.depot.signers import load_signer
from services.kit.errors import RefusedError


class Freshness:
    """Signs with the keys of `keys/depot`, chosen by what the root says, so that a rotation needs no setting."""

    def __init__(self, repository: Repository, keys: Path) -> None:
        self._repository = repository
        self._keys = keys

    def check(self, root: Root) -> None:
        """Refuse a root whose online keys are not here.

        Raises:
            RefusedError: naming the role.
        """
        for role in ("snapshot", "timestamp"):
            self._signers(root, role)

    def renew(self, now: datetime) -> bool:
        """Sign anew what ends soon, or what another root's keys signed.

        Returns:
            Whether there is a new timestamp.
        """
        root = self._repository.root()
        if self._repository.snapshot().expires - now < SNAPSHOT_RENEWAL or not self._signed_by(root, "snapshot"):
            head = self._repository.head
            self.publish(head.targets, head.roles, now)
            return True
        if self._repository.timestamp().expires - now < TIMESTAMP_RENEWAL or not self._signed_by(root, "timestamp"):
            head = self._repository.head
            self._stamp(root, head.snapshot, now)
            return True
        return False

    def publish(self, targets: int, roles: Mapping[str, int], now: datetime) -> None:
        """Put versions whose files are stored into effect: a new snapshot, then the timestamp that commits it.

        Raises:
            RefusedError: if the freshness keys are not here.
        """
        root = self._repository.root()
        number = self._repository.head.snapshot + 1
        text = signed_snapshot(number, targets, roles, now, self._signers(root, "snapshot"))
        self._repository.write(file_of("snapshot", number), text)
        self._stamp(root, number, now)

    def _stamp(self, root: Root, snapshot: int, now: datetime) -> None:
        number = self._repository.head.timestamp + 1
        self._repository.commit(signed_timestamp(number, snapshot, now, self._signers(root, "timestamp")))

    def _signers(self, root: Root, role: str) -> list[Signer]:
        wanted = root.roles[role]
        every = [load_signer(path) for path in sorted(self._keys.glob("*.pem"))]
        found: list[Signer] = [signer for signer in every if signer.public_key.keyid in wanted.keyids]
        if len(found) < wanted.threshold:
            raise RefusedError(
                f"sign {role}: root version {root.version} wants {wanted.threshold} of {len(wanted.keyids)} keys, "
                f"{self._keys} holds {len(found)} of them; put the new PEM files there first"
            )
        return found

    def _signed_by(self, root: Root, role: str) -> bool:
        name = TIMESTAMP_FILE if role == "timestamp" else file_of(role, self._repository.head.snapshot)
        metadata = Metadata.from_bytes(self._repository.file(name))
        try:
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError:
            return False
        return True
