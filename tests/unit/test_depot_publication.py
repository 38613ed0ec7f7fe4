"""The depot publishes nothing that would leave devices with metadata which no key of today signs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata

from services.depot.metadata import file_of, role_of
from services.depot.review import review
from services.depot.signers import make_signer
from services.kit.errors import RefusedError
from tests.support.trust_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


def text(signed: Any, *keys: Any) -> str:
    metadata = Metadata(signed)
    for key in keys:
        metadata.sign(key, append=True)
    return metadata.to_bytes().decode()


def rotated_root(world: World, new: Any) -> str:
    root = world.repository.root()
    root.version += 1
    root.revoke_key(root.roles["targets"].keyids[0], "targets")
    root.add_key(new.public_key, "targets")
    return text(root, world.offline("root"))


def test_a_root_that_rotates_the_targets_key_comes_with_targets_by_the_new_key(world: World, tmp_path: Path) -> None:
    new = make_signer(tmp_path / "targets-2.pem")
    files = {"2.root.json": rotated_root(world, new)}
    with pytest.raises(RefusedError, match=r"1\.targets\.json is not signed by the keys that hold from now on"):
        review(world.repository, files)
    targets = world.repository.targets()
    targets.version += 1
    files[file_of("targets", targets.version)] = text(targets, new)
    assert review(world.repository, files).root is not None


def test_targets_that_rotate_a_models_key_come_with_the_models_role_by_the_new_key(
    world: World, tmp_path: Path
) -> None:
    world.release("digits", "0.1.0")
    role, new = role_of("digits"), make_signer(tmp_path / "models-2.pem")
    targets = world.repository.targets()
    targets.version += 1
    targets.revoke_key(world.offline("models").public_key.keyid, role)
    targets.add_key(new.public_key, role)
    files = {file_of("targets", targets.version): text(targets, world.offline("targets"))}
    with pytest.raises(RefusedError, match=r"1\.model-digits\.json is not signed by the keys that hold from now on"):
        review(world.repository, files)


def test_a_delegation_may_be_taken_back(world: World) -> None:
    world.release("digits", "0.1.0")
    targets = world.repository.targets()
    targets.version += 1
    assert targets.delegations is not None
    targets.delegations.roles = {}
    name = file_of("targets", targets.version)
    assert set(review(world.repository, {name: text(targets, world.offline("targets"))}).files) == {name}
