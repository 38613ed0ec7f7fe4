"""Jobs of the worker process: take over a trust pack, and look up a signed target."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Root, Targets

from edge_runtime.errors import TrustError
from edge_runtime.folder import sync_folder
from edge_runtime.trust.floors import FreshnessKeys, check_versions, highest
from edge_runtime.trust.pack import load_pack, open_pack
from edge_runtime.trust.record import RECORD_FILE, TrustRecord, cached_files, read_record, write_record
from edge_runtime.trust.updater import Verified, refreshed
from schemas.depot import TrustState
from schemas.errors import ContractError
from schemas.trust import SERVICES_TARGET, ServicesDocument

MAX_MODELS = 128
_ROLE = re.compile(r"model-([A-Za-z0-9][A-Za-z0-9_-]{0,62})")
_MODEL_TARGET = re.compile(r"models/([A-Za-z0-9][A-Za-z0-9_-]{0,62})/([^/]{1,64})/[^/]{1,64}")
_FIELD = "causeway"


def run(params: dict[str, Any]) -> dict[str, Any]:
    """Take over a trust pack: all of it verifies and nothing goes back, or nothing changes.

    Args:
        params: `folder` (the trust folder), `pack` (base64 of what `down/trust` brought, or the path of a file with it,
            or null to verify again what is held), `root_sha256` (of the pinned root, from the token), `platform`,
            `floors` (`TrustFloors` of the welcome as a dict, or null), `now` (ISO 8601 with offset), and, to undo a
            time that a stolen key has proven, `system` (the clock without any proof) and `proven` (time by key id).

    Returns:
        `trust`: `TrustState` as a dict; `changed`: whether the keyring should be loaded again.

    Raises:
        TrustError: with reason `oversized`, `bad_pack`, `wrong_root`, `bad_signature`, `rollback`, `expired`,
            `wrong_platform`, `missing_metadata`, `bad_metadata` or `damaged_record`.
    """
    folder = Path(params["folder"])
    raw = load_pack(params.get("pack"))
    offered = {name: text.encode() for name, text in open_pack(raw).files.items()} if raw else {}
    record = read_record(folder)
    if record is not None and record.root_sha256 != params["root_sha256"]:
        record = None  # enrolled anew, with another platform's token
    held = cached_files(folder, record) if record else {}
    now = _time(params["now"])
    try:
        found = _verify(params, record, held, offered, now)
    except TrustError as error:
        if error.reason != "expired" or "proven" not in params:
            raise
        now = _moment_of_listed_keys(params, record, held, offered, now)
        found = _verify(params, record, held, offered, now)
    floors = highest(record.floors if record else {}, found.floors, set(found.floors))
    made = _record(params["root_sha256"], found.state, _next_cache(record), found.files, floors, now)
    changed = record is None or (record.accepted, record.files) != (made.accepted, made.files)
    if changed or not held:
        _switch(folder, made, found.files)
    else:
        assert record is not None
        write_record(folder, made.model_copy(update={"cache": record.cache}))
    return {"trust": found.state.model_dump(), "changed": changed}


def target(params: dict[str, Any]) -> dict[str, Any]:
    """Look up a target in the metadata that is held, all of it unexpired at `now`.

    Args:
        params: `folder` (the trust folder), `target` (`models/M/VERSION/model.onnx`), `now` (ISO 8601 with offset).

    Returns:
        `sha256`, `length`, `custom` (`ReleaseCustom` as a dict), `floor` (the highest ever seen for the model) and
        `revoked` (versions).

    Raises:
        TrustError: `unknown_target` if no release is signed under this name, `missing_metadata` if the model's role is
            not held (ask the depot with `Keyring.state([model])`), `expired`, and what `run` raises.
    """
    folder, path = Path(params["folder"]), str(params["target"])
    match = _MODEL_TARGET.fullmatch(path)
    if match is None:
        raise TrustError(f"look up target {path[:200]!r}: it is not models/MODEL/VERSION/FILE", reason="unknown_target")
    record = read_record(folder)
    held = cached_files(folder, record) if record else {}
    if record is None or not held:
        raise TrustError("look up a target: no trust metadata is held; ask the depot", reason="missing_metadata")
    model = match[1]
    bootstrap = _pinned(record.root_sha256, held)
    with refreshed(_metadata(held), {}, bootstrap, _time(params["now"])) as verified:
        check_versions(_state(verified), record.accepted.model_copy(update={"roles": {}}), keys_replaced=False)
        if verified.version_of(f"model-{model}") is None:
            raise TrustError(f"look up target {path}: nothing was ever released for {model}", reason="unknown_target")
        role = verified.role(f"model-{model}", path)
        found = verified.target(path)
    if found is None:
        raise TrustError(f"look up target {path}: no release of that name is signed", reason="unknown_target")
    floor, revoked = _private(role)
    return {
        "sha256": found.hashes["sha256"],
        "length": found.length,
        "custom": found.custom,
        "floor": max(floor, record.floors.get(model, 0)),
        "revoked": revoked,
    }


@dataclass(frozen=True, slots=True)
class _Found:
    """What verified: its versions, its files, and the floors that the models' roles sign."""

    state: TrustState
    files: dict[str, bytes]
    floors: dict[str, int]


def _verify(
    params: Mapping[str, Any],
    record: TrustRecord | None,
    held: Mapping[str, bytes],
    offered: Mapping[str, bytes],
    now: datetime,
) -> _Found:
    bootstrap = _pinned(params["root_sha256"], {**offered, **held})
    with refreshed(_metadata(held), _metadata(offered), bootstrap, now) as verified:
        _check_platform(verified.root, params["platform"])
        services = _services(verified, {**held, **offered}, params["platform"])
        signed_floors = _load_models(verified, {**held, **offered})
        state = _state(verified)
        for floor in _floors(record, params.get("floors")):
            check_versions(state, floor, keys_replaced=_keys_replaced(verified, floor.root))
        return _Found(state, {**verified.files(), RECORD_FILE: services}, signed_floors)


def _moment_of_listed_keys(
    params: Mapping[str, Any],
    record: TrustRecord | None,
    held: Mapping[str, bytes],
    offered: Mapping[str, bytes],
    now: datetime,
) -> datetime:
    """The time that is proven by the keys that the offered metadata still lists.

    A thief of a service key can prove a far future to a device without a clock, in which the very metadata that takes
    the key back is expired. So it is verified as of the system's clock first, only to learn which proofs still count.
    """
    system = _time(params["system"])
    services = ServicesDocument.read(_verify(params, record, held, offered, system).files[RECORD_FILE])
    listed = {key.keyid for key in services.keys}
    return min(now, max([system, *(_time(at) for keyid, at in params["proven"].items() if keyid in listed)]))


def _metadata(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: raw for name, raw in files.items() if name != RECORD_FILE}


def _pinned(digest: str, files: Mapping[str, bytes]) -> bytes:
    roots = [raw for name, raw in files.items() if name.endswith(".root.json")]
    for raw in roots:
        if hashlib.sha256(raw).hexdigest() == digest:
            return raw
    if not roots:
        raise TrustError("verify trust metadata: no root is held or offered; ask the depot", reason="missing_metadata")
    raise TrustError(
        f"verify trust metadata: no root has the digest {digest[:16]}... that the token pins; "
        "this is another platform, or somebody in between",
        reason="wrong_root",
    )


def _check_platform(root: Root, platform: str) -> None:
    named = root.unrecognized_fields.get(_FIELD)
    if not isinstance(named, dict) or named.get("platform") != platform:
        raise TrustError(f"verify trust metadata: the root is not for platform {platform}", reason="wrong_platform")


def _services(verified: Verified, files: Mapping[str, bytes], platform: str) -> bytes:
    signed = verified.targets.targets.get(SERVICES_TARGET)
    raw = files.get(RECORD_FILE)
    if signed is None or raw is None:
        raise TrustError(f"verify {SERVICES_TARGET}: it is not offered; ask the depot", reason="missing_metadata")
    if len(raw) != signed.length or hashlib.sha256(raw).hexdigest() != signed.hashes.get("sha256"):
        raise TrustError(f"verify {SERVICES_TARGET}: its bytes are not the signed ones", reason="wrong_digest")
    try:
        document = ServicesDocument.read(raw)
    except ContractError as error:
        raise TrustError(f"read {SERVICES_TARGET}: {error}", reason="bad_metadata") from error
    if document.platform != platform:
        raise TrustError(f"verify {SERVICES_TARGET}: it is for {document.platform}", reason="wrong_platform")
    return raw


def _load_models(verified: Verified, files: Mapping[str, bytes]) -> dict[str, int]:
    """Verify every model role at hand, at most 128, and return the floors that they sign."""
    floors: dict[str, int] = {}
    for name in sorted(verified.snapshot.meta):
        match = _ROLE.fullmatch(name.removesuffix(".json"))
        if match is None or len(floors) >= MAX_MODELS:
            continue
        role, model = match[0], match[1]
        if f"{verified.version_of(role)}.{role}.json" not in files:
            continue
        try:
            floors[model] = _private(verified.role(role, f"models/{model}/-/-"))[0]
        except TrustError as error:
            # One model that nobody signs any more must not keep the others, or the service keys, from being renewed.
            if error.reason not in {"expired", "unknown_target"}:
                raise
    return floors


def _private(role: Targets) -> tuple[int, list[str]]:
    field = role.unrecognized_fields.get(_FIELD)
    if not isinstance(field, dict):
        return 0, []
    floor, revoked = field.get("floor", 0), field.get("revoked", [])
    if not isinstance(floor, int) or not isinstance(revoked, list) or not all(isinstance(v, str) for v in revoked):
        raise TrustError(
            "read a model's role: its floor or list of revoked versions is malformed", reason="bad_metadata"
        )
    return floor, list(revoked)


def _state(verified: Verified) -> TrustState:
    return TrustState(
        root=verified.root.version,
        timestamp=verified.timestamp.version,
        snapshot=verified.snapshot.version,
        targets=verified.targets.version,
        roles={role.removeprefix("model-"): version for role, version in verified.roles.items()},
    )


def _floors(record: TrustRecord | None, welcome: Mapping[str, int] | None) -> list[TrustState]:
    found = [record.accepted] if record else []
    return [*found, TrustState.model_validate(dict(welcome))] if welcome else found


def _keys_replaced(verified: Verified, version: int) -> bool:
    past = verified.past_root(version)
    return past is not None and _freshness(past).replaced_by(_freshness(verified.root))


def _freshness(root: Root) -> FreshnessKeys:
    return FreshnessKeys(frozenset(root.roles["timestamp"].keyids), frozenset(root.roles["snapshot"].keyids))


def _next_cache(record: TrustRecord | None) -> str:
    return f"cache-{int(record.cache.removeprefix('cache-')) + 1 if record else 1}"


def _record(
    root_sha256: str, state: TrustState, cache: str, files: Mapping[str, bytes], floors: dict[str, int], now: datetime
) -> TrustRecord:
    return TrustRecord(
        root_sha256=root_sha256,
        accepted=state,
        cache=cache,
        files={name: hashlib.sha256(raw).hexdigest() for name, raw in sorted(files.items())},
        services=ServicesDocument.read(files[RECORD_FILE]),
        floors=floors,
        refreshed=now,
    )


def _switch(folder: Path, record: TrustRecord, files: Mapping[str, bytes]) -> None:
    """Lay the new cache beside the old one, fsync it, put the record into effect, then remove the old one."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = folder / record.cache
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    for name, raw in files.items():
        descriptor = os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(fresh)
    sync_folder(folder)
    write_record(folder, record)
    for old in folder.glob("cache-*"):
        if old.name != record.cache:
            shutil.rmtree(old, ignore_errors=True)


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise TrustError(f"read the time {text!r}: it needs an offset from UTC", reason="clock")
    return moment
