"""A device takes over what the true keys signed, and nothing that a thief replays, forges or inflates."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import zstandard
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import Updater

from edge_runtime.errors import TrustError
from edge_runtime.trust.keyring import Keyring
from edge_runtime.trust.updater import refreshed
from schemas.depot import TrustState
from services.depot.metadata import file_of
from services.depot.signers import make_signer
from tests.support.trust_world import DAY, NOW, World, repack


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


def refused(world: World, reason: str, *args, **kwargs) -> TrustError:
    """The refusal, after which the device believes exactly what it did before."""
    path = world.device / "services.json"
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(TrustError) as raised:
        world.take(*args, **kwargs)
    assert raised.value.reason == reason, raised.value
    assert (path.read_bytes() if path.exists() else None) == before
    return raised.value


def test_a_fresh_device_learns_keys_and_releases(world: World) -> None:
    world.release("digits", "0.1.0")
    assert Keyring(world.device).state() == TrustState(root=0)
    answer = world.take()
    assert answer["changed"]
    keyring = Keyring(world.device)
    assert keyring.state() == TrustState.model_validate(answer["trust"]) == world.repository.head.state()
    assert keyring.ready
    assert world.look_up("models/digits/0.1.0/model.onnx") == {
        "sha256": hashlib.sha256(b"model").hexdigest(),
        "length": 5,
        "custom": {"model": "digits", "version": "0.1.0"},
        "floor": 0,
        "revoked": [],
    }


def test_what_is_held_is_not_sent_again_and_changes_nothing(world: World) -> None:
    world.release("digits", "0.1.0")
    world.take()
    pack = zstandard.ZstdDecompressor().decompress(world.pack())
    assert json.loads(pack)["files"] == {}
    assert world.take() == {"trust": world.repository.head.state().model_dump(), "changed": False}


def test_a_new_release_comes_as_a_difference(world: World) -> None:
    world.release("digits", "0.1.0")
    world.take()
    world.release("digits", "0.2.0")
    pack = json.loads(zstandard.ZstdDecompressor().decompress(world.pack()))
    assert sorted(pack["files"]) == ["2.model-digits.json", "3.snapshot.json", "timestamp.json"]
    assert world.take()["changed"]
    assert world.look_up("models/digits/0.2.0/model.onnx")["length"] == 5
    with pytest.raises(TrustError) as raised:
        world.look_up("models/digits/0.3.0/model.onnx")
    assert raised.value.reason == "unknown_target"


def test_a_root_with_another_digest_is_refused(world: World, tmp_path: Path) -> None:
    other = World.make(tmp_path / "other")
    refused(world, "wrong_root", other.pack())


def test_a_root_for_another_platform_is_refused(world: World) -> None:
    refused(world, "wrong_platform", platform="01JD0000000000000000000009")


@pytest.mark.parametrize("held", [True, False], ids=["held", "fresh"])
def test_metadata_by_another_key_is_refused(world: World, held: bool) -> None:
    if held:
        world.take()
    world.release("digits", "0.1.0", key="thief")
    refused(world, "bad_signature")


def test_a_changed_byte_is_refused(world: World) -> None:
    world.release("digits", "0.1.0")
    digest = hashlib.sha256(b"model").hexdigest()
    text = world.read("1.model-digits.json").decode()
    assert digest in text
    forged = text.replace(digest, hashlib.sha256(b"other").hexdigest())
    refused(world, "bad_signature", repack(world.pack(), **{"1__model-digits__json": forged}))


def test_a_changed_services_document_is_refused(world: World) -> None:
    forged = world.read("services.json").decode().replace('"assign"', '"a","assign"')
    refused(world, "wrong_digest", repack(world.pack(), services__json=forged))


@pytest.mark.parametrize("what", ["timestamp", "snapshot"])
def test_lower_versions_by_the_true_keys_are_refused(world: World, what: str) -> None:
    world.commit(timestamp=5, snapshot=5)
    world.take()
    world.commit(**({"timestamp": 4, "snapshot": 6} if what == "timestamp" else {"timestamp": 6, "snapshot": 4}))
    refused(world, "rollback")


def test_an_old_mirror_is_refused_after_the_cache_is_lost(world: World) -> None:
    old = world.pack(TrustState(root=0))
    world.release("digits", "0.1.0")
    world.take()
    for cache in world.device.glob("cache-*"):
        shutil.rmtree(cache)
    assert Keyring(world.device).state() == TrustState(root=0), "with nothing on disk everything is asked for"
    assert Keyring(world.device).ready, "the keys stay usable"
    assert "older than what was accepted" in str(refused(world, "rollback", old))
    world.take()
    assert Keyring(world.device).state() == world.repository.head.state()


def test_a_fresh_device_keeps_to_the_floors_of_its_welcome(world: World) -> None:
    floors = world.repository.floors.model_dump()
    world.take(floors=floors)
    shutil.rmtree(world.device)
    refused(world, "rollback", floors={**floors, "snapshot": 2})


def test_expiry_is_judged_by_the_clock_that_is_given(world: World) -> None:
    world.release("digits", "0.1.0")
    world.take(now=NOW + 6 * DAY)
    path = "models/digits/0.1.0/model.onnx"
    world.look_up(path, NOW + 6 * DAY)
    with pytest.raises(TrustError) as raised:
        world.look_up(path, NOW + 8 * DAY)
    assert raised.value.reason == "expired", "installing needs all unexpired"
    assert Keyring(world.device).ready, "running never expires"
    world.commit(now=NOW + 8 * DAY)
    refused(world, "expired", now=NOW + 39 * DAY)
    world.take(now=NOW + 9 * DAY)


def test_the_private_clock_of_tuf_is_where_we_set_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the one place that reaches into tuf: if a release of it moves its clock, this fails and not a device."""
    files = {name: world.read(name) for name in world.repository.head.files()}
    with refreshed({}, files, files["1.root.json"], NOW + timedelta(days=1)) as verified:
        assert verified._updater._trusted_set.reference_time == NOW + timedelta(days=1)
    monkeypatch.setattr(Updater, "__init__", lambda self, *a, **k: setattr(self, "_trusted_set", object()))
    with pytest.raises(TrustError, match="set the clock"), refreshed({}, files, files["1.root.json"], NOW):
        pass


def test_a_thief_s_high_versions_are_undone_by_rotating_both_freshness_keys(world: World) -> None:
    world.commit(timestamp=10**6, snapshot=10**6)
    world.take()
    rotate(world, "timestamp")
    world.commit(timestamp=2, snapshot=2)
    refused(world, "rollback")
    rotate(world, "snapshot", "timestamp")
    world.commit(timestamp=2, snapshot=2)
    assert world.take()["trust"]["timestamp"] == 2


def rotate(world: World, *roles: str) -> None:
    old = world.repository
    root = old.root()
    root.version += 1
    for role in roles:
        root.roles[role].keyids = []
        root.add_key(make_signer(world.state.freshness_keys / f"{role}.pem").public_key, role)
    metadata: Metadata[Root] = Metadata(root)
    metadata.sign(world.offline("root"))
    old.write(file_of("root", root.version), metadata.to_bytes())


def test_a_model_s_floor_never_goes_down(world: World) -> None:
    world.release("digits", "0.1.0", floor=3)
    world.take()
    world.release("digits", "0.2.0", floor=1)
    world.take()
    assert world.look_up("models/digits/0.1.0/model.onnx")["floor"] == 3


def test_a_model_whose_delegation_is_taken_back_is_gone(world: World) -> None:
    world.release("digits", "0.1.0")
    world.take()
    targets = world.repository.targets()
    targets.version += 1
    assert targets.delegations is not None
    targets.delegations.roles = {}
    world._write(file_of("targets", targets.version), targets, "targets")
    world.commit(targets=targets.version)
    assert world.take()["trust"]["roles"] == {}
    with pytest.raises(TrustError) as raised:
        world.look_up("models/digits/0.1.0/model.onnx")
    assert raised.value.reason == "unknown_target"


def test_one_expired_model_does_not_keep_the_rest_from_being_renewed(world: World) -> None:
    world.release("digits", "0.1.0")
    later = NOW + 400 * DAY
    targets = world.repository.targets()
    targets.version += 1
    targets.expires = later + DAY
    world._write(file_of("targets", targets.version), targets, "targets")
    world.commit(targets=targets.version, now=later)
    assert world.take(now=later)["trust"]["roles"] == {}
    assert Keyring(world.device).ready


def test_a_damaged_record_is_not_made_anew(world: World) -> None:
    world.take()
    path = world.device / "services.json"
    path.write_bytes(path.read_bytes().replace(b'timestamp\\":1', b'timestamp\\":0'))
    refused(world, "damaged_record", world.pack(TrustState(root=0)))


def test_a_bomb_is_cut_off(world: World) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    assert len(bomb) < 8_192
    refused(world, "oversized", bomb)


def test_a_large_pack_is_not_even_expanded(world: World) -> None:
    refused(world, "oversized", b"\x28\xb5\x2f\xfd" + bytes(262_144))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.json", "a/b.json", "timestamp.json.sh", ".json", "x" * 90 + ".json"]
)
def test_a_bad_file_name_is_refused(world: World, name: str) -> None:
    refused(
        world,
        "bad_pack",
        zstandard.ZstdCompressor().compress(json.dumps({"v": 1, "head": {"root": 1}, "files": {name: "{}"}}).encode()),
    )


@pytest.mark.parametrize("raw", [b"\x28\xb5\x2f\xfdgarbage", zstandard.ZstdCompressor().compress(b"no json")])
def test_garbage_is_refused(world: World, raw: bytes) -> None:
    refused(world, "bad_pack", raw)


def test_without_any_root_the_depot_must_be_asked(world: World) -> None:
    refused(world, "missing_metadata", repack(world.pack(), **{"1__root__json": None}))


def test_a_crash_between_cache_and_record_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.take()
    before = Keyring(world.device).state()
    world.release("digits", "0.1.0")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("edge_runtime.trust.refresh.write_record", crash)
        with pytest.raises(KeyboardInterrupt):
            world.take()
    assert Keyring(world.device).state() == before
    assert world.take()["changed"]
    assert len(list(world.device.glob("cache-*"))) == 1
