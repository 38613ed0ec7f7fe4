"""Names and lives of the trust metadata, and how the two freshness roles are made. Pure: `now` in, bytes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from schemas.depot import TrustState
from schemas.ids import check_identifier

ROOT_LIFE = timedelta(days=730)
TARGETS_LIFE = timedelta(days=365)
SNAPSHOT_LIFE = timedelta(days=30)
TIMESTAMP_LIFE = timedelta(days=7)
SNAPSHOT_RENEWAL = timedelta(days=15)
"""A snapshot with less left is signed again."""
TIMESTAMP_RENEWAL = timedelta(days=6)
"""Same of the timestamp: once a day."""

PRIVATE_FIELD = "causeway"
"""Field of ours in signed metadata: `{platform}` in root, `{floor, revoked}` in a model's role."""

TIMESTAMP_FILE = "timestamp.json"
SERVICES_FILE = "services.json"
TARGETS = "targets"
_MODEL_PREFIX = "model-"


def role_of(model: str) -> str:
    """Name of the TUF role that signs a model's releases."""
    return _MODEL_PREFIX + check_identifier(model, "model")


def model_of(role: str) -> str | None:
    """Model of a role; None for a role of another kind."""
    return role.removeprefix(_MODEL_PREFIX) if role.startswith(_MODEL_PREFIX) else None


def target_path(model: str, version: str) -> str:
    """Where a release stands among the targets."""
    return f"models/{model}/{version}/model.onnx"


def target_pattern(model: str) -> str:
    """What a model's role may sign; a TUF `*` does not cross `/`."""
    return f"models/{model}/*/*"


def file_of(role: str, version: int) -> str:
    """File name of a role's metadata (TUF 7, consistent snapshots); the timestamp alone has no version in it."""
    return TIMESTAMP_FILE if role == Timestamp.type else f"{version}.{role}.json"


@dataclass(frozen=True, slots=True)
class Head:
    """Versions that hold now. `roles` maps TUF role names of models to versions."""

    root: int
    timestamp: int
    snapshot: int
    targets: int
    roles: Mapping[str, int]

    def state(self) -> TrustState:
        """As it travels: models by their own names."""
        models = {model: version for role, version in self.roles.items() if (model := model_of(role)) is not None}
        return TrustState(
            root=self.root,
            timestamp=self.timestamp,
            snapshot=self.snapshot,
            targets=self.targets,
            roles=dict(sorted(models.items())[:128]),
        )

    def files(self) -> list[str]:
        """Names of the files that hold now, the roots of before apart."""
        named = [("root", self.root), ("snapshot", self.snapshot), (TARGETS, self.targets), *self.roles.items()]
        return [TIMESTAMP_FILE, *(file_of(role, version) for role, version in named)]


def signed_snapshot(
    version: int, targets: int, roles: Mapping[str, int], now: datetime, signers: Iterable[Signer]
) -> bytes:
    """Metadata that fixes which versions belong together (TUF 4.4)."""
    meta = {f"{role}.json": MetaFile(number) for role, number in sorted(roles.items())}
    meta[f"{TARGETS}.json"] = MetaFile(targets)
    return _sign(Metadata(Snapshot(version=version, expires=_whole(now + SNAPSHOT_LIFE), meta=meta)), signers)


def signed_timestamp(version: int, snapshot: int, now: datetime, signers: Iterable[Signer]) -> bytes:
    """Metadata that says which snapshot is the newest (TUF 4.5); the commit point of a publication."""
    signed = Timestamp(version=version, expires=_whole(now + TIMESTAMP_LIFE), snapshot_meta=MetaFile(snapshot))
    return _sign(Metadata(signed), signers)


def new_root(platform: str, now: datetime) -> Root:
    """An unsigned first root, without keys yet."""
    return Root(
        expires=_whole(now + ROOT_LIFE),
        consistent_snapshot=True,
        unrecognized_fields={PRIVATE_FIELD: {"platform": platform}},
    )


def new_targets(now: datetime) -> Targets:
    """Unsigned targets, without a target yet; model roles are of the same form."""
    return Targets(expires=_whole(now + TARGETS_LIFE))


def renewed_expiry(now: datetime) -> datetime:
    """When targets that are signed now end."""
    return _whole(now + TARGETS_LIFE)


def _sign(metadata: Metadata[Snapshot] | Metadata[Timestamp], signers: Iterable[Signer]) -> bytes:
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _whole(moment: datetime) -> datetime:
    # TUF writes whole seconds; a remainder would be lost on the first round trip.
    return moment.replace(microsecond=0)
