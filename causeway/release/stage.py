"""Staging: from a model file to the metadata that is to be signed, with what changes in words. Signs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, TargetFile, Targets

from causeway.release.files import LocalArtifact, ReleaseFile, StagedRole
from causeway.release.smoke import check_smoke
from schemas.ota import ReleaseCustom, SmokeSpec, Stage
from schemas.wording import problems
from services.depot.metadata import (
    PRIVATE_FIELD,
    TARGETS,
    file_of,
    new_targets,
    renewed_expiry,
    role_of,
    target_path,
    target_pattern,
)
from services.depot.repository import Repository
from services.depot.review import releases
from services.depot.signers import load_public
from services.kit.artifacts.recipe import Recipe, cut
from services.kit.errors import RefusedError, SettingsError
from services.kit.folder import StateFolder

DEFAULT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be released.

    Attributes:
        path: the ONNX file; None together with `version` None to raise a floor or revoke only.
        smoke: safetensors with `input` and `expected`, float32 each; devices try it before they switch.
        requires: `ram_mb`, `disk_mb`: at least; `arch`, `os`: equal; any other name: a runtime that is installed.
        raise_floor: no release with a lower `seq` is installed any more, by anyone; cannot be taken back.
        revoke: versions that are never installed again.
        keys: PEM files (public halves suffice) that sign a new model's releases; default `models.pem`.
        threshold: how many of them must.
    """

    model: str
    version: str | None = None
    path: Path | None = None
    smoke: Path | None = None
    tolerance: float = DEFAULT_TOLERANCE
    fleets: tuple[str, ...] = ()
    stage: Stage = "production"
    requires: dict[str, str | int] = field(default_factory=dict)
    raise_floor: int | None = None
    revoke: tuple[str, ...] = ()
    keys: tuple[Path, ...] = ()
    threshold: int = 1


def stage(state: StateFolder, draft: Draft, now: datetime) -> ReleaseFile:
    """Make the next metadata of the model's role, and of the targets if the model is new.

    Raises:
        RefusedError: if the version exists, a floor would go down, or there is nothing to release.
        SettingsError: if a file cannot be read or a field does not fit.
    """
    if (draft.path is None) != (draft.version is None):
        raise RefusedError("stage a release: give a model file and a version, or neither to raise a floor or revoke")
    repository = Repository(state.trust)
    role, diff = role_of(draft.model), [f"platform {repository.platform}, model {draft.model}"]
    roles: dict[str, StagedRole] = {}
    targets = repository.targets()
    if targets.delegations is None or role not in (targets.delegations.roles or {}):
        name, staged = _delegate(state, repository, targets, draft, now, diff)
        roles[name] = staged
    signed = repository.model(draft.model)
    if signed is None:
        if draft.path is None:
            raise RefusedError(
                f"stage {draft.model}: nothing was ever released for it; give a model file and a version"
            )
        signed = new_targets(now)
    else:
        signed.version += 1
    artifacts = _add_target(signed, draft, now, diff)
    _raise_floor(signed, draft, diff)
    if len(diff) == 1:
        raise RefusedError(f"stage {draft.model}: nothing changes; give a model file, --raise-floor or --revoke")
    signed.expires = renewed_expiry(now)
    diff.append(f"role {role} version {signed.version}, valid until {signed.expires.isoformat()}")
    roles[file_of(role, signed.version)] = _staged(role, signed, targets)
    return ReleaseFile(
        platform=repository.platform,
        model=draft.model,
        version=draft.version,
        diff=diff,
        roles=roles,
        artifacts=artifacts,
    )


def _delegate(
    state: StateFolder, repository: Repository, targets: Targets, draft: Draft, now: datetime, diff: list[str]
) -> tuple[str, StagedRole]:
    role = role_of(draft.model)
    keys = [load_public(path) for path in draft.keys or (state.offline_keys / "models.pem",)]
    if not 1 <= draft.threshold <= len(keys):
        raise RefusedError(f"stage {draft.model}: a threshold of {draft.threshold} does not fit {len(keys)} keys")
    if targets.delegations is None:
        targets.delegations = Delegations({}, {})
    assert targets.delegations.roles is not None
    _add_keys(targets.delegations, keys)
    targets.delegations.roles[role] = DelegatedRole(
        role,
        [key.keyid for key in keys],
        draft.threshold,
        terminating=True,
        paths=[target_pattern(draft.model)],
    )
    targets.version += 1
    targets.expires = renewed_expiry(now)
    names = ", ".join(key.keyid[:12] for key in keys)
    diff.append(f"+ {target_pattern(draft.model)} is signed by {draft.threshold} of {len(keys)} keys: {names}")
    diff.append(f"role {TARGETS} version {targets.version}, valid until {targets.expires.isoformat()}")
    allowed = repository.root().roles[TARGETS]
    staged = StagedRole(
        role=TARGETS,
        keyids=list(allowed.keyids),
        threshold=allowed.threshold,
        metadata=Metadata(targets).to_dict(),
    )
    return file_of(TARGETS, targets.version), staged


def _add_keys(delegations: Delegations, keys: list[SSlibKey]) -> None:
    for key in keys:
        delegations.keys[key.keyid] = key


def _add_target(signed: Targets, draft: Draft, now: datetime, diff: list[str]) -> list[LocalArtifact]:
    if draft.path is None or draft.version is None:
        return []
    path = target_path(draft.model, draft.version)
    if path in signed.targets:
        raise RefusedError(f"stage {draft.model} {draft.version}: it is released already; a release is never changed")
    recipe = _cut(draft.path)
    artifacts = [LocalArtifact(path=draft.path.absolute(), sha256=recipe.sha256)]
    smoke: SmokeSpec | None = None
    if draft.smoke is not None:
        check_smoke(draft.smoke)
        tests = _cut(draft.smoke)
        artifacts.append(LocalArtifact(path=draft.smoke.absolute(), sha256=tests.sha256))
        smoke = SmokeSpec(
            sha256=tests.sha256,
            recipe=tests.digest,
            length=tests.length,
            pieces=tests.pieces,
            tolerance_micro=max(1, round(draft.tolerance * 1e6)),
        )
    newest = max((view.custom.seq for view in releases(draft.model, signed)), default=0)
    try:
        custom = ReleaseCustom(
            model=draft.model,
            version=draft.version,
            seq=newest + 1,
            fleets=list(draft.fleets),
            stage=draft.stage,
            requires=draft.requires,
            recipe=recipe.digest,
            pieces=recipe.pieces,
            smoke=smoke,
            created=now.replace(microsecond=0),
        )
    except ValidationError as error:
        raise SettingsError(f"stage {path}: {problems(error)}") from error
    fields = custom.model_dump(mode="json", exclude_none=True)
    signed.targets[path] = TargetFile(recipe.length, {"sha256": recipe.sha256}, path, {"custom": fields})
    diff.append(f"+ {path}: {recipe.length} bytes, sha256 {recipe.sha256}, seq {custom.seq}")
    diff.append(
        f"  for {', '.join(draft.fleets) or 'any fleet'}, stage {draft.stage}, requires {draft.requires or '-'}"
    )
    if smoke is None:
        diff.append("  WITHOUT a smoke test: devices only try whether it loads")
    else:
        diff.append(f"  smoke test sha256 {smoke.sha256}, tolerance {smoke.tolerance:g}")
    return artifacts


def _raise_floor(signed: Targets, draft: Draft, diff: list[str]) -> None:
    views = {view.version: view.custom.seq for view in releases(draft.model, signed)}
    before = signed.unrecognized_fields.get(PRIVATE_FIELD) or {"floor": 0, "revoked": []}
    floor, revoked = before["floor"], list(before["revoked"])
    if draft.raise_floor is not None:
        newest = max(views.values(), default=0)
        if not floor < draft.raise_floor <= newest:
            raise RefusedError(
                f"stage {draft.model}: floor {draft.raise_floor} does not fit: it is {floor}, the newest seq {newest}"
            )
        diff.append(f"! floor {floor} -> {draft.raise_floor}: no release with a lower seq is installed any more")
        floor = draft.raise_floor
    for version in draft.revoke:
        if version not in views:
            raise RefusedError(f"stage {draft.model}: there is no version {version} to revoke")
        if version not in revoked:
            diff.append(f"! revoke {version}: it is never installed again")
            revoked.append(version)
    signed.unrecognized_fields[PRIVATE_FIELD] = {"floor": floor, "revoked": revoked}


def _staged(role: str, signed: Targets, delegator: Targets) -> StagedRole:
    allowed = delegator.get_delegated_role(role)
    return StagedRole(
        role=role, keyids=list(allowed.keyids), threshold=allowed.threshold, metadata=Metadata(signed).to_dict()
    )


def _cut(path: Path) -> Recipe:
    try:
        return cut(path)
    except OSError as error:
        raise SettingsError(f"read {path}: {error.strerror}; name the file to release") from error
