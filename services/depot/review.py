"""Whether finished metadata may be published: signed along its delegations, one version on, nothing loosened.

The core of `publish`: reads the repository, writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError

from schemas.aggregator import Artifact
from schemas.ota import ReleaseCustom
from schemas.trust import SERVICES_TARGET, ServicesDocument
from services.depot.metadata import PRIVATE_FIELD, SERVICES_FILE, TARGETS, file_of, model_of, target_path
from services.depot.repository import Repository
from services.kit.api.depot import ReleaseView
from services.kit.errors import RefusedError

MAX_FILE_BYTES = 524_288


@dataclass
class Publication:
    """What a set of files comes to. Empty where everything in it holds already.

    Attributes:
        files: metadata to write, by name.
        services: a new services document.
        roles: versions of all model roles afterwards.
        releases: what is new, with its artifact still to be checked.
    """

    targets: int
    roles: dict[str, int]
    files: dict[str, bytes] = field(default_factory=dict)
    services: bytes | None = None
    root: Root | None = None
    releases: list[ReleaseView] = field(default_factory=list)


def review(repository: Repository, files: Mapping[str, str]) -> Publication:
    """Check a publication.

    Raises:
        RefusedError: naming the file and what is wrong with it.
    """
    given = {name: text.encode() for name, text in files.items()}
    head = repository.head
    publication = Publication(head.targets, dict(head.roles))
    services = given.pop(SERVICES_FILE, None)
    parsed = {name: raw for name, raw in given.items() if not _published(repository, name, raw)}
    order = {"root": 0, TARGETS: 1}
    root, targets = repository.root(), repository.targets()
    for name in sorted(parsed, key=lambda n: (order.get(_role(n), 2), n)):
        role, raw = _role(name), parsed[name]
        if len(raw) > MAX_FILE_BYTES:
            raise RefusedError(f"publish {name}: {len(raw)} bytes exceed {MAX_FILE_BYTES}")
        if role == "root":
            root = _review_root(repository, root, name, raw)
            publication.root = root
        elif role == TARGETS:
            targets = _verified(root, TARGETS, name, raw, head.targets)
            publication.targets = targets.version
        else:
            _review_model(repository, publication, targets, name, raw)
        publication.files[name] = raw
    _review_rest(repository, publication, root, targets)
    _review_services(repository, publication, targets, services)
    return publication


def releases(model: str, signed: Targets) -> list[ReleaseView]:
    """What a model's role releases, oldest first.

    Raises:
        RefusedError: if a target's custom field is not a release, or contradicts its path.
    """
    floor, revoked = _private(signed)
    found = [_release(model, path, target, floor, revoked) for path, target in signed.targets.items()]
    return sorted(found, key=lambda view: view.custom.seq)


def _published(repository: Repository, name: str, raw: bytes) -> bool:
    # A repeated request, after a lost answer, has no effect.
    return name in repository.head.files() and repository.file(name) == raw


def _role(name: str) -> str:
    parts = name.split(".")
    if len(parts) != 3 or parts[2] != "json" or not parts[0].isdigit():
        raise RefusedError(f"publish {name[:80]!r}: files are named VERSION.ROLE.json, or {SERVICES_FILE}")
    role = parts[1]
    if role not in {"root", TARGETS} and model_of(role) is None:
        raise RefusedError(f"publish {name}: only root, targets and the models' roles are published from outside")
    return role


def _verified(delegator: Root | Targets, role: str, name: str, raw: bytes, before: int) -> Targets:
    kind: type[Targets] = Targets
    try:
        metadata: Metadata[Targets] = Metadata.from_bytes(raw)
        if not isinstance(metadata.signed, kind):
            raise RefusedError(f"publish {name}: it is {metadata.signed.type} metadata")
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (DeserializationError, RepositoryError, ValueError) as error:
        raise RefusedError(
            f"publish {name}: {error}; sign it with the role's keys (`causeway release sign`)"
        ) from error
    _check_version(name, metadata.signed.version, before)
    return metadata.signed


def _check_version(name: str, version: int, before: int) -> None:
    if version != before + 1 or not name.startswith(f"{version}."):
        raise RefusedError(
            f"publish {name}: it holds version {version}, but {before} is published, so {before + 1} is next; "
            "stage it again"
        )


def _review_root(repository: Repository, old: Root, name: str, raw: bytes) -> Root:
    try:
        metadata: Metadata[Root] = Metadata.from_bytes(raw)
        new = metadata.signed
        if not isinstance(new, Root):
            raise RefusedError(f"publish {name}: it is {metadata.signed.type} metadata")
        for delegator in (old, new):
            delegator.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except (DeserializationError, RepositoryError, ValueError) as error:
        raise RefusedError(f"publish {name}: {error}; the old and the new root keys sign a new root") from error
    _check_version(name, new.version, old.version)
    private = new.unrecognized_fields.get(PRIVATE_FIELD)
    if not isinstance(private, dict) or private.get("platform") != repository.platform or not new.consistent_snapshot:
        raise RefusedError(
            f"publish {name}: a root keeps its platform ({repository.platform}) and consistent snapshots"
        )
    return new


def _review_model(repository: Repository, publication: Publication, targets: Targets, name: str, raw: bytes) -> None:
    role = _role(name)
    model = model_of(role)
    assert model is not None
    if targets.delegations is None or role not in (targets.delegations.roles or {}):
        raise RefusedError(f"publish {name}: the targets delegate nothing to {role}; publish them together")
    before = repository.head.roles.get(role, 0)
    signed = _verified(targets, role, name, raw, before)
    if signed.delegations is not None:
        raise RefusedError(f"publish {name}: a model's role delegates nothing")
    old = repository.model(model)
    views = releases(model, signed)
    known = {view.target: view for view in releases(model, old)} if old else {}
    floor, old_floor = _private(signed)[0], _private(old)[0] if old else 0
    if floor < old_floor:
        raise RefusedError(f"publish {name}: it lowers the floor from {old_floor} to {floor}")
    newest = max((view.custom.seq for view in known.values()), default=0)
    for view in views:
        same = known.get(view.target)
        if same is not None:
            if (same.artifact, same.custom) != (view.artifact, view.custom):
                raise RefusedError(f"publish {name}: it changes {view.target}; a release is never changed")
        elif view.custom.seq <= newest:
            raise RefusedError(f"publish {name}: {view.target} has seq {view.custom.seq}, the newest is {newest}")
        else:
            publication.releases.append(view)
    publication.roles[role] = signed.version


def _review_rest(repository: Repository, publication: Publication, root: Root, targets: Targets) -> None:
    """What stays as it is must hold under new keys as well, or devices would refuse everything, new keys included."""
    if publication.root is not None and publication.targets == repository.head.targets:
        _still_holds(repository, root, TARGETS, publication.targets)
    delegated = targets.delegations.roles if targets.delegations else None
    if publication.targets == repository.head.targets or not delegated:
        return
    for role, version in repository.head.roles.items():
        if publication.roles[role] == version and role in delegated:
            _still_holds(repository, targets, role, version)


def _still_holds(repository: Repository, delegator: Root | Targets, role: str, version: int) -> None:
    name = file_of(role, version)
    try:
        metadata: Metadata[Targets] = Metadata.from_bytes(repository.file(name))
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (DeserializationError, RepositoryError, ValueError) as error:
        raise RefusedError(
            f"publish: {name} is not signed by the keys that hold from now on ({error}); "
            f"sign version {version + 1} of {role} with them and publish it together with this"
        ) from error


def _review_services(
    repository: Repository, publication: Publication, targets: Targets, services: bytes | None
) -> None:
    signed = targets.targets.get(SERVICES_TARGET)
    if signed is None:
        raise RefusedError(f"publish targets: they must keep {SERVICES_TARGET}, or devices would believe no service")
    wanted = signed.hashes.get("sha256")
    if services is None:
        if hashlib.sha256(repository.services()).hexdigest() != wanted:
            raise RefusedError(f"publish targets: they name another {SERVICES_TARGET}; send {SERVICES_FILE} with them")
        return
    if hashlib.sha256(services).hexdigest() != wanted or len(services) != signed.length:
        raise RefusedError(f"publish {SERVICES_FILE}: its bytes are not those that the targets sign")
    if ServicesDocument.read(services).platform != repository.platform:
        raise RefusedError(f"publish {SERVICES_FILE}: it is for another platform than {repository.platform}")
    publication.services = services


def _release(model: str, path: str, target: TargetFile, floor: int, revoked: list[str]) -> ReleaseView:
    try:
        custom = ReleaseCustom.model_validate(target.custom)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise RefusedError(f"publish {path}: its custom field does not fit: {place}: {problem['msg']}") from error
    if custom.model != model or path != target_path(model, custom.version):
        raise RefusedError(f"publish {path}: its custom field names {custom.model} {custom.version}")
    sha256 = target.hashes.get("sha256", "")
    return ReleaseView(
        model=model,
        version=custom.version,
        target=path,
        artifact=Artifact(sha256=sha256, length=target.length, recipe=custom.recipe, pieces=custom.pieces),
        custom=custom,
        floor=floor,
        revoked=custom.version in revoked,
    )


def _private(signed: Targets) -> tuple[int, list[str]]:
    field_ = signed.unrecognized_fields.get(PRIVATE_FIELD)
    if not isinstance(field_, dict):
        return 0, []
    return int(field_.get("floor", 0)), [str(version) for version in field_.get("revoked", [])]
