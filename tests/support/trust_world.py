"""A platform's trust in a folder, a device's trust in another, and a thief's tools. For the tests of trust."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import zstandard
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, TargetFile, Targets

from causeway.release.repository import create_repository
from edge_runtime.trust.keyring import Keyring
from edge_runtime.trust.refresh import run, target
from schemas.depot import TrustPack, TrustState
from schemas.envelope import Signer
from schemas.trust import ServiceKey, ServicesDocument
from services.depot.metadata import (
    PRIVATE_FIELD,
    SERVICES_FILE,
    file_of,
    new_targets,
    role_of,
    signed_snapshot,
    signed_timestamp,
    target_path,
    target_pattern,
)
from services.depot.packs import Packs
from services.depot.repository import Repository
from services.depot.signers import load_signer, make_signer
from services.kit.folder import StateFolder

PLATFORM = "01JD0000000000000000000000"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def service_key(service: str, kinds: list[str]) -> tuple[Signer, ServiceKey]:
    signer = Signer.generate()
    public = base64.b64encode(signer.public_key).decode()
    return signer, ServiceKey(keyid=signer.keyid, public=public, service=service, kinds=kinds, generation=1)


@dataclass
class World:
    """Both ends. `publish` signs as the depot would, with whatever versions a test wants."""

    state: StateFolder
    device: Path
    ota: Signer
    scheduler: Signer

    @classmethod
    def make(cls, root: Path) -> World:
        ota, ota_key = service_key("ota", ["assign"])
        scheduler, scheduler_key = service_key("scheduler", ["task"])
        state = StateFolder(root / "state")
        create_repository(state, PLATFORM, ServicesDocument(platform=PLATFORM, keys=[ota_key, scheduler_key]), NOW)
        return cls(state, root / "device", ota, scheduler)

    @property
    def repository(self) -> Repository:
        return Repository(self.state.trust)

    def read(self, name: str) -> bytes:
        return self.repository.services() if name == SERVICES_FILE else self.repository.file(name)

    def keys(self, *names: str) -> list[Any]:
        return [load_signer(self.state.freshness_keys / f"{name}.pem") for name in names]

    def offline(self, name: str) -> Any:
        return load_signer(self.state.offline_keys / f"{name}.pem")

    def commit(
        self, *, timestamp: int | None = None, snapshot: int | None = None, now: datetime = NOW, **versions: Any
    ) -> None:
        head = self.repository.head
        roles = {**head.roles, **versions.get("roles", {})}
        number = snapshot or head.snapshot + 1
        text = signed_snapshot(number, versions.get("targets", head.targets), roles, now, self.keys("snapshot"))
        self.repository.write(file_of("snapshot", number), text)
        self.repository.commit(signed_timestamp(timestamp or head.timestamp + 1, number, now, self.keys("timestamp")))

    def release(self, model: str, version: str, *, floor: int = 0, key: str = "models", data: bytes = b"model") -> None:
        """Delegate to the model's role if need be, add one target and publish."""
        head = self.repository.head
        role = role_of(model)
        versions: dict[str, Any] = {"roles": {role: head.roles.get(role, 0) + 1}}
        if role not in head.roles:
            targets = self.repository.targets()
            targets.version += 1
            public = self.offline("models").public_key
            delegated = DelegatedRole(role, [public.keyid], 1, True, paths=[target_pattern(model)])
            if targets.delegations is None:
                targets.delegations = Delegations({}, {})
            targets.delegations.keys[public.keyid] = public
            targets.delegations.roles[role] = delegated
            self._write(file_of("targets", targets.version), targets, "targets")
            versions["targets"] = targets.version
        signed = self.repository.model(model) or new_targets(NOW)
        signed.version = versions["roles"][role]
        signed.unrecognized_fields[PRIVATE_FIELD] = {"floor": floor, "revoked": []}
        path = target_path(model, version)
        signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        signed.targets[path].unrecognized_fields["custom"] = {"model": model, "version": version}
        self._write(file_of(role, signed.version), signed, key)
        self.commit(**versions)

    def pack(self, held: TrustState | None = None) -> bytes:
        return Packs(self.read).answer(self.repository.head, held or Keyring(self.device).state())

    def take(self, pack: bytes | None = None, now: datetime = NOW, **changes: Any) -> dict[str, Any]:
        raw = self.pack() if pack is None else pack
        params = {
            "folder": str(self.device),
            "pack": base64.b64encode(raw).decode(),
            "root_sha256": hashlib.sha256((self.state.trust / "1.root.json").read_bytes()).hexdigest(),
            "platform": PLATFORM,
            "floors": None,
            "now": now.isoformat(),
            **changes,
        }
        return run(json.loads(json.dumps(params)))

    def look_up(self, path: str, now: datetime = NOW) -> dict[str, Any]:
        return target({"folder": str(self.device), "target": path, "now": now.isoformat()})

    def _write(self, name: str, signed: Targets, key: str) -> None:
        metadata = Metadata(signed)
        metadata.sign(make_signer(self.state.root / "thief.pem") if key == "thief" else self.offline(key))
        self.repository.write(name, metadata.to_bytes())


def repack(raw: bytes, **changes: Any) -> bytes:
    """A pack with some files replaced or added; None takes one out. Names use `__` for a dot."""
    pack = TrustPack.read(zstandard.ZstdDecompressor().decompress(raw))
    files = dict(pack.files)
    for key, text in changes.items():
        name = key.replace("__", ".")
        if text is None:
            del files[name]
        else:
            files[name] = text
    return zstandard.ZstdCompressor().compress(json.dumps({"v": 1, "head": {"root": 1}, "files": files}).encode())
