"""From a model file to what the depot accepts: staged in words, signed by people, reviewed by the depot."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from safetensors.numpy import save_file
from tuf.api.metadata import Metadata, TargetFile
from typer.testing import CliRunner

from causeway.cli.release import app
from causeway.release.files import ReleaseFile, read_release, write_release
from causeway.release.sign import sign
from causeway.release.stage import Draft, stage
from schemas.trust import SERVICES_TARGET, ServicesDocument
from services.depot.freshness import Freshness
from services.depot.metadata import PRIVATE_FIELD, file_of
from services.depot.review import Publication, review
from services.depot.signers import load_public, load_signer, make_signer
from services.kit.errors import RefusedError, SettingsError
from tests.support.models import scale_model
from tests.support.trust_world import DAY, NOW, PLATFORM, World, service_key


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "model.onnx").write_bytes(b"onnx" * 1_000)
    return World.make(tmp_path)


def draft(world: World, version: str = "0.1.0", **changes: Any) -> Draft:
    return Draft(model="digits", version=version, path=world.state.root.parent / "model.onnx", **changes)


def signed(world: World, release: ReleaseFile, *keys: str) -> ReleaseFile:
    for key in keys:
        release, _ = sign(release, world.state.offline_keys / f"{key}.pem")
    return release


def texts(release: ReleaseFile) -> dict[str, str]:
    return {name: role.parsed().to_bytes().decode() for name, role in release.roles.items()}


def accept(world: World, files: dict[str, str]) -> Publication:
    """Review and put into effect, as the depot does."""
    repository = world.repository
    publication = review(repository, files)
    for name, raw in publication.files.items():
        repository.write(name, raw)
    if publication.services is not None:
        repository.write_services(publication.services)
    repository.reload()
    Freshness(repository, world.state.freshness_keys).publish(publication.targets, publication.roles, NOW)
    return publication


def publish(world: World, version: str, **changes: Any) -> Publication:
    release = stage(world.state, draft(world, version, **changes), NOW)
    return accept(world, texts(signed(world, release, *(["targets"] if len(release.roles) > 1 else []), "models")))


def test_a_release_is_staged_signed_and_taken(world: World) -> None:
    release = stage(world.state, draft(world, fleets=("harbour",), requires={"ram_mb": 64}), NOW)
    assert sorted(release.roles) == ["1.model-digits.json", "2.targets.json"]
    assert any("WITHOUT a smoke test" in line for line in release.diff)
    assert len(release.missing) == 2
    publication = accept(world, texts(signed(world, release, "targets", "models")))
    (view,) = publication.releases
    assert (view.custom.seq, view.custom.fleets, view.custom.requires) == (1, ["harbour"], {"ram_mb": 64})
    world.take()
    found = world.look_up("models/digits/0.1.0/model.onnx")
    assert (found["sha256"], found["custom"]["recipe"]) == (view.artifact.sha256, view.artifact.recipe)
    assert publish(world, "0.2.0").releases[0].custom.seq == 2


def test_two_of_three_sign_in_separate_steps(world: World, tmp_path: Path) -> None:
    keys = [tmp_path / f"{name}.pem" for name in ("alice", "bob", "carol")]
    make_signer(keys[0])
    make_signer(keys[1], b"a password")
    curve = ec.generate_private_key(ec.SECP256R1())
    keys[2].write_bytes(curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = [tmp_path / f"{key.stem}.pub" for key in keys]
    for path, key, password in zip(public, keys, (None, b"a password", None), strict=True):
        half = load_pem_private_key(key.read_bytes(), password).public_key()
        path.write_bytes(half.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    file = tmp_path / "digits.release.json"
    release = stage(world.state, draft(world, keys=tuple(public), threshold=2), NOW)
    write_release(file, signed(world, release, "targets"))
    with pytest.raises(RefusedError, match="was signed by 0/2 keys"):
        review(world.repository, texts(read_release(file)))
    write_release(file, sign(read_release(file), keys[1], b"a password")[0])
    assert read_release(file).missing[0].startswith("model-digits lacks 1 of 2")
    write_release(file, sign(read_release(file), keys[1], b"a password")[0])
    with pytest.raises(RefusedError, match="was signed by 1/2 keys"):
        review(world.repository, texts(read_release(file)))
    write_release(file, sign(read_release(file), keys[2])[0])
    assert read_release(file).missing == []
    accept(world, texts(read_release(file)))
    assert world.take()["trust"]["roles"] == {"digits": 1}


def test_keys_that_cannot_be_used_say_why(world: World, tmp_path: Path) -> None:
    make_signer(tmp_path / "locked.pem", b"a password")
    private = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "text.pem").write_text("no key")
    for name, password, said in (
        ("locked.pem", None, "give its password"),
        ("locked.pem", b"wrong", "password right"),
        ("rsa.pem", None, "devices verify Ed25519, P-256 and P-384"),
        ("text.pem", None, "it is no PEM file"),
        ("none.pem", None, "No such file"),
    ):
        with pytest.raises(SettingsError, match=said):
            load_signer(tmp_path / name, password)
    with pytest.raises(SettingsError, match="pass a PEM file"):
        load_public(tmp_path / "text.pem")
    make_signer(tmp_path / "stranger.pem")
    with pytest.raises(RefusedError, match="may sign no role of this release"):
        sign(stage(world.state, draft(world), NOW), tmp_path / "stranger.pem")


def test_what_makes_no_sense_is_not_staged(world: World) -> None:
    publish(world, "0.1.0")
    publish(world, "0.2.0")
    for wrong, said in (
        (draft(world, "0.1.0"), "it is released already"),
        (Draft("digits"), "nothing changes"),
        (Draft("faces", raise_floor=1), "nothing was ever released"),
        (Draft("digits", version="0.3.0"), "give a model file and a version"),
        (Draft("digits", raise_floor=3), "the newest seq 2"),
        (Draft("digits", raise_floor=0), "floor 0 does not fit"),
        (Draft("digits", revoke=("9",)), "no version 9 to revoke"),
    ):
        with pytest.raises(RefusedError, match=said):
            stage(world.state, wrong, NOW)


def test_a_smoke_test_is_bound_and_checked(world: World, tmp_path: Path) -> None:
    smoke = tmp_path / "smoke.safetensors"
    x = np.zeros((4, 64), np.float32)
    save_file({"input": x, "expected": np.zeros((4, 10), np.float32)}, smoke)
    release = stage(world.state, draft(world, smoke=smoke, tolerance=0.01), NOW)
    assert len(release.artifacts) == 2
    for tensors, said in (
        ({"input": x}, "wanted are"),
        ({"input": x, "expected": x.astype(np.float64)}, "wanted is float32"),
        ({"input": x, "expected": x[:2]}, "4 inputs and 2 expected"),
    ):
        save_file(tensors, smoke)
        with pytest.raises(SettingsError, match=said):
            stage(world.state, draft(world, smoke=smoke), NOW)
    smoke.write_bytes(b"?")
    with pytest.raises(SettingsError, match="write it with safetensors"):
        stage(world.state, draft(world, smoke=smoke), NOW)


def forge(world: World, change: Any) -> dict[str, str]:
    """The next version of the model's role, changed at will, but signed with the true key."""
    role = world.repository.model("digits")
    assert role is not None
    role.version += 1
    change(role)
    metadata = Metadata(role)
    metadata.sign(world.offline("models"))
    return {file_of("model-digits", role.version): metadata.to_bytes().decode()}


def test_the_depot_lets_nothing_be_loosened(world: World) -> None:
    publish(world, "0.1.0")
    accept(world, texts(signed(world, stage(world.state, Draft("digits", raise_floor=1), NOW), "models")))
    path = "models/digits/0.1.0/model.onnx"

    def lower(role: Any) -> None:
        role.unrecognized_fields[PRIVATE_FIELD]["floor"] = 0

    def swap(role: Any) -> None:
        role.targets[path].length += 1

    def reuse(role: Any) -> None:
        custom = {**role.targets[path].custom, "version": "0.0.9"}
        other = "models/digits/0.0.9/model.onnx"
        role.targets[other] = TargetFile(1, {"sha256": "0" * 64}, other, {"custom": custom})

    def rename(role: Any) -> None:
        role.targets[path].unrecognized_fields["custom"]["model"] = "faces"

    def skip(role: Any) -> None:
        role.version += 1

    for change, said in (
        (lower, "lowers the floor from 1 to 0"),
        (swap, "a release is never changed"),
        (reuse, "has seq 1, the newest is 1"),
        (rename, "custom field names faces"),
        (skip, "but 2 is published, so 3 is next"),
    ):
        with pytest.raises(RefusedError, match=said):
            review(world.repository, forge(world, change))


def test_repeating_a_publication_is_no_publication(world: World) -> None:
    release = signed(world, stage(world.state, draft(world), NOW), "targets", "models")
    accept(world, texts(release))
    assert review(world.repository, texts(release)).files == {}


def test_service_keys_are_rotated_by_a_release(world: World) -> None:
    world.take()
    _, key = service_key("ota", ["assign"])
    document = ServicesDocument(platform=PLATFORM, keys=[key.model_copy(update={"generation": 2})])
    raw = document.model_dump_json()
    targets = world.repository.targets()
    targets.version += 1
    targets.targets[SERVICES_TARGET] = TargetFile.from_data(SERVICES_TARGET, raw.encode(), ["sha256"])
    metadata = Metadata(targets)
    metadata.sign(world.offline("targets"))
    name = file_of("targets", targets.version)
    text = metadata.to_bytes().decode()
    with pytest.raises(RefusedError, match=r"send services\.json with them"):
        review(world.repository, {name: text})
    with pytest.raises(RefusedError, match="not those that the targets sign"):
        review(world.repository, {name: text, "services.json": raw + " "})
    accept(world, {name: text, "services.json": raw})
    assert world.repository.document() == document
    assert json.loads((world.state.trust / "services.json").read_text()) == json.loads(raw)
    assert world.take()["changed"]


def test_a_new_root_needs_both_roots_keys_and_the_online_keys_here(world: World, tmp_path: Path) -> None:
    root = world.repository.root()
    root.version = 2
    fresh = make_signer(tmp_path / "timestamp-2.pem")
    root.revoke_key(root.roles["timestamp"].keyids[0], "timestamp")
    root.add_key(fresh.public_key, "timestamp")
    metadata = Metadata(root)
    metadata.sign(make_signer(tmp_path / "thief.pem"))
    with pytest.raises(RefusedError, match="old and the new root keys"):
        review(world.repository, {"2.root.json": metadata.to_bytes().decode()})
    metadata.sign(world.offline("root"))
    files = {"2.root.json": metadata.to_bytes().decode()}
    publication = review(world.repository, files)
    assert publication.root is not None
    with pytest.raises(RefusedError, match="put the new PEM files there first"):
        Freshness(world.repository, world.state.freshness_keys).check(publication.root)
    (tmp_path / "timestamp-2.pem").rename(world.state.freshness_keys / "timestamp-2.pem")
    world.take()
    accept(world, files)
    assert world.take()["trust"]["root"] == 2


def test_freshness_is_renewed_before_it_ends(world: World) -> None:
    repository = world.repository
    freshness = Freshness(repository, world.state.freshness_keys)
    assert not freshness.renew(NOW + 0.9 * DAY)
    assert freshness.renew(NOW + 1.1 * DAY)
    assert (repository.head.timestamp, repository.head.snapshot) == (2, 1)
    assert freshness.renew(NOW + 16 * DAY)
    assert (repository.head.timestamp, repository.head.snapshot) == (3, 2)
    assert not freshness.renew(NOW + 16 * DAY)


def test_the_command_line_stages_and_signs(world: World, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    state = ["--state", str(world.state.root)]
    world.state.settings.write_text(f'platform = "{PLATFORM}"\n')
    arguments = [str(tmp_path / "model.onnx"), "--model", "digits", "--version", "1", "-o", str(file), "--json"]
    (tmp_path / "model.onnx").write_bytes(scale_model(2.0))
    runner = CliRunner()
    done = runner.invoke(app, ["stage", *arguments, *state, "--requires", "ram_mb=64"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["file"] == str(file)
    keys = [part for name in ("targets", "models") for part in ("--key", str(world.state.offline_keys / f"{name}.pem"))]
    done = runner.invoke(app, ["sign", str(file), *keys, "--json"])
    assert json.loads(done.output)["signed"] == ["targets", "model-digits"]
    assert json.loads(done.output)["missing"] == []
    assert accept(world, texts(read_release(file))).releases[0].custom.created <= datetime.now(UTC)
    done = runner.invoke(app, ["stage", *arguments, *state])
    assert done.exit_code == 4
    for wrong in (["--stage", "x"], ["--requires", "ram"]):
        assert runner.invoke(app, ["stage", *arguments, *state, *wrong]).exit_code == 2
    assert runner.invoke(app, ["sign", str(tmp_path / "none.json"), *keys]).exit_code == 2
