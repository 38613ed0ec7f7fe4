"""The depot over the real bus: trust for devices, releases from staging to a device that believes them."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from causeway.release.files import ReleaseFile
from causeway.release.publish import publish
from causeway.release.sign import sign
from causeway.release.stage import Draft, stage
from edge_runtime.trust.keyring import Keyring
from edge_runtime.trust.refresh import run, target
from schemas.depot import TrustAnnouncement, TrustState, Want
from schemas.ids import Address
from schemas.topics import Channel
from services.depot.freshness import Freshness
from services.depot.repository import Repository
from services.kit import rpc
from services.kit.api.depot import PublishAnswer, PublishRequest, ReleaseRequest, ReleaseView, TrustAnswer, release_key
from services.kit.artifacts import open_store
from services.kit.bus import connect
from services.kit.errors import NotFoundError, RefusedError
from services.kit.rejects import KEPT_PER_MINUTE
from services.kit.streams import ensure_owned
from tests.support.depot_device import MqttDevice
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import in_bus

CAM = Address("home", "cam-1")


@pytest.fixture
def depot(live: LivePlatform) -> LivePlatform:
    live.start_service("depot")
    return live


def ask(live: LivePlatform, verb: str, request: Any = None) -> Any:
    async def call() -> Any:
        bus = await connect(live.state, live.settings, "operator")
        try:
            return await rpc.call(bus, "depot", verb, request)
        finally:
            await bus.close()

    return asyncio.run(call())


def publish_file(live: LivePlatform, release: ReleaseFile) -> PublishAnswer:
    async def call() -> PublishAnswer:
        bus = await connect(live.state, live.settings, "operator")
        try:
            return await publish(bus, open_store(live.state, live.settings), live.settings.platform, release)
        finally:
            await bus.close()

    return asyncio.run(call())


def staged(live: LivePlatform, path: Path, version: str, *keys: str, **changes: Any) -> ReleaseFile:
    path.write_bytes(f"model {version}".encode() * 10_000)
    release = stage(live.state, Draft("digits", version, path, **changes), datetime.now(UTC))
    for key in keys:
        release, _ = sign(release, live.state.offline_keys / f"{key}.pem")
    return release


def take(live: LivePlatform, folder: Path, pack: bytes) -> dict[str, Any]:
    return run(
        {
            "folder": str(folder),
            "pack": base64.b64encode(pack).decode(),
            "root_sha256": ask(live, "trust")["root_sha256"],
            "platform": live.settings.platform,
            "floors": ask(live, "trust")["floors"],
            "now": datetime.now(UTC).isoformat(),
        }
    )


def test_a_release_reaches_a_device_that_believes_it(depot: LivePlatform, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    device = MqttDevice(depot, CAM, enrolled=False)
    device.hello(None)
    take(depot, folder, device.newest("trust"))
    device.close()
    assert Keyring(folder).ready, "a device that only holds a token learns the service keys"

    device = MqttDevice(depot, CAM)
    answer = publish_file(depot, staged(depot, tmp_path / "m.onnx", "0.1.0", "targets", "models"))
    assert [(view.version, view.custom.seq) for view in answer.releases] == [("0.1.0", 1)]
    heard = TrustAnnouncement.read(device.newest("all.trust"))
    assert heard.timestamp == answer.head.timestamp > Keyring(folder).state().timestamp
    device.publish(Channel.PARCEL, "want", Want(trust=Keyring(folder).state()).write())
    assert take(depot, folder, device.newest("trust"))["changed"]
    found = target({"folder": str(folder), "target": "models/digits/0.1.0/model.onnx", "now": now()})
    assert found["sha256"] == answer.releases[0].artifact.sha256
    assert found["custom"] == answer.releases[0].custom.model_dump(mode="json", exclude_none=True)

    device.hello(Keyring(folder).state())
    assert take(depot, folder, device.newest("trust", 2)) == {"trust": answer.head.model_dump(), "changed": False}
    device.close()


def now() -> str:
    return datetime.now(UTC).isoformat()


def test_publishing_is_listed_kept_and_repeatable(depot: LivePlatform, tmp_path: Path) -> None:
    release = staged(depot, tmp_path / "m.onnx", "0.1.0", "targets", "models")
    first = publish_file(depot, release)
    again = publish_file(depot, release)
    assert again.head == first.head
    assert again.releases == []
    second = publish_file(depot, staged(depot, tmp_path / "m.onnx", "0.2.0+cpu", "models"))
    depot.kill("depot")
    depot.start_service("depot")
    views = [ReleaseView.model_validate(view) for view in ask(depot, "list")]
    assert views == [*first.releases, *second.releases]
    shown = ask(depot, "show", ReleaseRequest(model="digits"))
    assert shown["version"] == "0.2.0+cpu"
    with pytest.raises(NotFoundError):
        ask(depot, "show", ReleaseRequest(model="digits", version="9"))
    assert asyncio.run(bucket_of(depot)) == {
        release_key(view.model, view.version): json.loads(view.model_dump_json()) for view in views
    }


async def bucket_of(live: LivePlatform) -> dict[str, Any]:
    bus = await connect(live.state, live.settings, "ota")
    bucket = await bus.bucket("releases")
    found = {key: json.loads((await bucket.get(key)).value or b"") for key in await bucket.keys()}
    await bus.close()
    return found


def test_a_floor_is_raised_by_its_own_act(depot: LivePlatform, tmp_path: Path) -> None:
    publish_file(depot, staged(depot, tmp_path / "m.onnx", "0.1.0", "targets", "models"))
    publish_file(depot, staged(depot, tmp_path / "m.onnx", "0.2.0", "models"))
    act = stage(depot.state, Draft("digits", raise_floor=2, revoke=("0.1.0",)), datetime.now(UTC))
    assert any("floor 0 -> 2" in line for line in act.diff)
    publish_file(depot, sign(act, depot.state.offline_keys / "models.pem")[0])
    views = [ReleaseView.model_validate(view) for view in ask(depot, "list")]
    assert [(v.version, v.floor, v.revoked) for v in views] == [("0.1.0", 2, True), ("0.2.0", 2, False)]


def test_what_is_not_signed_right_is_refused_and_changes_nothing(depot: LivePlatform, tmp_path: Path) -> None:
    before = ask(depot, "trust")
    release = staged(depot, tmp_path / "m.onnx", "0.1.0", "targets")
    with pytest.raises(RefusedError, match="model-digits lacks 1 of 1 signatures"):
        publish_file(depot, release)
    unsigned = {name: role.parsed().to_bytes().decode() for name, role in release.roles.items()}
    with pytest.raises(RefusedError, match=r"model-digits was signed by 0/1 keys"):
        ask(depot, "publish", PublishRequest(files=unsigned))
    with pytest.raises(RefusedError, match="delegate nothing to model-digits"):
        ask(depot, "publish", PublishRequest(files={"1.model-digits.json": unsigned["1.model-digits.json"]}))
    with pytest.raises(RefusedError, match="only root, targets"):
        ask(depot, "publish", PublishRequest(files={"9.snapshot.json": "{}"}))
    assert ask(depot, "trust") == before


def test_an_artifact_that_the_store_lacks_is_refused(depot: LivePlatform, tmp_path: Path) -> None:
    release = staged(depot, tmp_path / "m.onnx", "0.1.0", "targets", "models")
    files = {name: role.parsed().to_bytes().decode() for name, role in release.roles.items()}
    with pytest.raises(RefusedError, match="not found"):
        ask(depot, "publish", PublishRequest(files=files))
    (tmp_path / "m.onnx").write_bytes(b"something else")
    with pytest.raises(RefusedError, match="changed since it was staged"):
        publish_file(depot, release)
    assert ask(depot, "list") == []


def test_bad_wants_are_kept_with_their_reason_and_counted(depot: LivePlatform) -> None:
    in_bus(depot, "courier", lambda bus: ensure_owned(bus.js, "courier"))
    device = MqttDevice(depot, CAM)
    device.publish(Channel.PARCEL, "want", b"{")
    device.publish(Channel.PARCEL, "want", b'{"pieces":["xyz"]}')
    device.publish(Channel.PARCEL, "want", b"{}")
    device.publish(Channel.PARCEL, "piece", b"?")
    device.publish(Channel.PARCEL, "want", b" " * 20_000)
    device.publish(Channel.STATE, "hello", b"no hello")

    def counted() -> bool:
        page = depot.metrics("depot")
        return all(
            f'causeway_rejected_total{{kind="{kind}",reason="{reason}",service="depot"}} {count}' in page
            for kind, reason, count in (
                ("want", "malformed", "3.0"),
                ("unknown", "wrong_kind", "1.0"),
                ("want", "oversized", "1.0"),
                ("hello", "wrong_kind", "1.0"),
            )
        )

    eventually(counted, "every bad message to be counted")
    for _ in range(3 * KEPT_PER_MINUTE):
        device.publish(Channel.PARCEL, "want", b"{")
    total = f'causeway_rejected_total{{kind="want",reason="malformed",service="depot"}} {3 + 3 * KEPT_PER_MINUTE:.1f}'
    eventually(lambda: total in depot.metrics("depot"), "the flood to be counted")
    rejects = in_bus(depot, "auditor", lambda bus: bus.js.stream_info("REJECTS"))
    assert rejects.state.messages == KEPT_PER_MINUTE + 3
    device.hello(TrustState(root=1))
    device.newest("trust")
    device.close()


def test_a_stale_timestamp_is_signed_anew_at_start(live: LivePlatform) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=20)
    repository = Repository(live.state.trust)
    Freshness(repository, live.state.freshness_keys).publish(1, {}, long_ago)
    live.start_service("depot")
    answer = TrustAnswer.model_validate(ask(live, "trust"))
    assert (answer.head.snapshot, answer.head.timestamp) == (3, 3)
    assert Repository(live.state.trust).timestamp().expires > datetime.now(UTC) + timedelta(days=6)
