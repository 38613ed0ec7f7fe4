"""`causeway-edge enrol` and `run` as real processes against a real registry, courier and depot."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.enrol import choose_identity
from edge_runtime.errors import EnrolError
from edge_runtime.identity import Identity, load_identity, save_identity
from schemas.registry import Token
from services.kit.api.registry import DeviceRequest
from tests.support.edge import EdgeProcess, ask, show
from tests.support.platform import LivePlatform, eventually, serving


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    with serving(tmp_path_factory.mktemp("world") / "state", "depot", "registry", "courier") as live:
        yield live


@pytest.fixture
def device(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[EdgeProcess]:
    made = EdgeProcess.make(tmp_path / "device", f"cam-{abs(hash(request.node.name)) % 10**8}")
    yield made
    if made.process is not None:
        made.stop()


def identity_of(device: EdgeProcess) -> Identity:
    identity = load_identity(device.folder / "state" / "identity.json")
    assert identity is not None
    return identity


def test_a_device_enrols_runs_and_its_heartbeat_reaches_the_registry(world, device) -> None:
    device.fetch_token(world)
    enrolled = device.enrol("--json")
    assert enrolled.returncode == 0, enrolled.stderr
    assert json.loads(enrolled.stdout)["device"] == device.address.device
    path = device.folder / "state" / "identity.json"
    assert path.stat().st_mode & 0o777 == 0o600
    device.environment["BATTERY"] = "10"
    device.start()
    beat = eventually(lambda: show(world, device.address).get("heartbeat"), "a heartbeat")
    assert beat["battery_percent"] == 10
    assert beat["network"]["rtt_ms"] > 0
    eventually(lambda: device.status().get("connected"), "status to say connected")
    assert "connected" in device.call("status").stdout
    assert json.loads(device.call("status", "--json").stdout)["running"]
    assert device.stop() == 0
    credentials = identity_of(device).credentials
    said = device.log() + enrolled.stderr + enrolled.stdout + json.dumps(device.status())
    assert credentials.jwt not in said
    assert credentials.client_id not in said
    eventually(lambda: not show(world, device.address)["online"], "the registry to note that it went")


def test_what_the_owner_adds_or_removes_later_reaches_the_registry(world, device) -> None:
    device.fetch_token(world)
    assert device.enrol().returncode == 0
    settings = device.folder / "edge.toml"
    before = settings.read_text()
    settings.write_text(before + '[datasets]\nmine = "mine.npz"\n[runners]\n"blink@1" = "blink:run"\n')
    device.start()
    eventually(lambda: "blink@1" in show(world, device.address)["capabilities"]["runners"], "the new runner")
    assert show(world, device.address)["capabilities"]["datasets"] == {}
    status = eventually(lambda: device.call("status", "--wait", "10").stdout, "a status")
    assert f"mine ({device.folder / 'mine.npz'})" in status
    device.stop()
    np.savez(device.folder / "mine.npz", x=np.zeros((7, 2), np.float32), y=np.zeros(7))
    device.start()
    eventually(lambda: show(world, device.address)["capabilities"]["datasets"] == {"mine": 7}, "the new data set")
    device.stop()
    asked = device.log().count('"offer.told"')
    device.start()
    assert device.call("status", "--wait", "10").returncode == 0
    device.stop()
    assert device.log().count('"offer.told"') == asked, "nothing is told twice"


def test_status_waits_for_a_connection_and_its_exit_code_says_whether_there_is_one(world, device) -> None:
    device.fetch_token(world)
    assert device.enrol().returncode == 0
    never = device.call("status", "--wait", "0.5")
    assert never.returncode == 2
    assert "no agent has run" in never.stderr
    device.start()
    assert device.call("status", "--wait", "20").returncode == 0
    device.stop()
    stopped = device.call("status")
    assert stopped.returncode == 1
    assert "not running; start it with `causeway-edge run`" in stopped.stdout


def test_a_second_agent_on_the_same_folder_is_refused(world, device) -> None:
    device.fetch_token(world)
    assert device.enrol().returncode == 0
    device.start()
    eventually(lambda: device.status().get("connected"), "the first agent")
    second = device.call("run")
    assert second.returncode == 2
    assert f"another agent (process {device.process.pid})" in second.stderr


def test_a_used_token_is_refused_with_the_registrys_reason(world, device, tmp_path) -> None:
    device.fetch_token(world)
    assert device.enrol().returncode == 0
    thief = EdgeProcess.make(tmp_path / "thief", device.address.device)
    thief.token.write_bytes(device.token.read_bytes())
    refused = thief.enrol()
    assert refused.returncode == 4
    assert "the registry refused" in refused.stderr
    assert "causeway device enrol" in refused.stderr


def test_enrolled_already_says_so_and_again_enrols_with_the_same_keys(world, device) -> None:
    device.fetch_token(world)
    assert device.enrol().returncode == 0
    before = identity_of(device)
    device.fetch_token(world)
    refused = device.enrol()
    assert refused.returncode == 4
    assert "enrolled already" in refused.stderr
    again = device.enrol("--again")
    assert again.returncode == 0, again.stderr
    after = identity_of(device)
    assert after.letter_seed == before.letter_seed
    assert after.credentials.client_id != before.credentials.client_id
    device.start()
    eventually(lambda: device.status().get("connected"), "the agent to connect with the new credentials")


def test_a_token_that_pins_another_root_stops_the_enrolment(world, device) -> None:
    token = device.fetch_token(world)
    device.token.write_text(json.dumps(token | {"root_sha256": "0" * 64}))
    refused = device.enrol()
    assert refused.returncode == 4
    assert "another platform, or somebody in between" in refused.stderr


def test_a_changed_secret_is_refused(world, device) -> None:
    token = device.fetch_token(world)
    device.token.write_text(json.dumps(token | {"secret": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}))
    refused = device.enrol()
    assert refused.returncode == 4
    assert "the registry refused" in refused.stderr


def test_an_expired_token_is_refused_here(world, device) -> None:
    token = device.fetch_token(world)
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    device.token.write_text(json.dumps(token | {"expires": past}))
    refused = device.enrol()
    assert refused.returncode == 4
    assert "it expired at" in refused.stderr


def test_an_unreadable_token_is_a_usage_error_that_keeps_the_secret(world, device) -> None:
    token = device.fetch_token(world)
    device.token.write_text(json.dumps(token | {"device": "no.dots"}))
    refused = device.enrol()
    assert refused.returncode == 2
    assert "wrong: device" in refused.stderr
    assert token["secret"] not in refused.stderr
    device.token.unlink()
    assert device.enrol().returncode == 2


def test_a_server_that_is_not_there_is_told_apart(world, device) -> None:
    token = device.fetch_token(world)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"mqtts://127.0.0.1:{free.getsockname()[1]}"
    device.token.write_text(json.dumps(token | {"url": url}))
    refused = device.enrol("--timeout", "2")
    assert refused.returncode == 5
    assert "Connection refused" in refused.stderr


def test_a_damaged_bootstrap_credential_is_refused_by_the_server(world, device) -> None:
    token = device.fetch_token(world)
    head, body, _ = token["bootstrap_jwt"].split(".")
    device.token.write_text(json.dumps(token | {"bootstrap_jwt": f"{head}.{body}.AAAA"}))
    refused = device.enrol()
    assert refused.returncode == 4
    assert "refused the token's credentials" in refused.stderr


def test_run_before_enrol_says_what_to_do(device) -> None:
    refused = device.call("run")
    assert refused.returncode == 2
    assert "causeway-edge enrol TOKEN" in refused.stderr


def test_an_interrupted_enrolment_goes_on_with_the_same_letter(live, tmp_path) -> None:
    live.start_service("depot")
    live.start_service("registry")
    device = EdgeProcess.make(tmp_path / "device", "cam-1")
    device.fetch_token(live)
    first = device.enrol("--timeout", "3")
    assert first.returncode == 5
    assert "does not answer hello; see that its courier and depot run" in first.stderr
    keys = identity_of(device).letter_seed
    live.start_service("courier")
    second = device.enrol()
    assert second.returncode == 0, second.stderr
    assert identity_of(device).letter_seed == keys
    device.start()
    receipted = [("enrol", "control", 1, "receipted")]
    eventually(lambda: device.rows("SELECT kind, lane, sequence, state FROM letters") == receipted, "the receipt")
    device.stop()


def _token() -> Token:
    return Token(
        url="mqtts://127.0.0.1:1",
        platform="01J00000000000000000000000",
        fleet="home",
        device="cam-1",
        root_sha256="0" * 64,
        secret="AAAA",
        expires=datetime.now(UTC) + timedelta(hours=1),
        token="01J00000000000000000000001",
        bootstrap_jwt="a.b.c",
        client_id="x" * 16,
    )


def test_a_folder_of_another_device_is_not_taken_over() -> None:
    token = _token()
    present = Identity.create(token.model_copy(update={"device": "cam-2"}))
    with pytest.raises(EnrolError, match="belongs to home/cam-2") as raised:
        choose_identity(present, token, again=False)
    assert raised.value.reason == "other_device"


def test_the_same_token_again_keeps_everything() -> None:
    present = Identity.create(_token()).model_copy(update={"enrol_id": "01J00000000000000000000009"})
    assert choose_identity(present, _token(), again=False) is present
    fresh = _token().model_copy(update={"token": "01J00000000000000000000002"})
    renewed = choose_identity(present, fresh, again=False)
    assert (renewed.letter_seed, renewed.enrol_id) == (present.letter_seed, None)


def test_credentials_are_renewed_at_half_life(world, device) -> None:
    device.fetch_token(world)
    assert device.enrol().returncode == 0
    before = identity_of(device)
    assert before.credentials is not None
    aged = before.credentials.model_copy(update={"received": datetime.now(UTC) - timedelta(days=300)})
    save_identity(device.folder / "state" / "identity.json", before.model_copy(update={"credentials": aged}))
    device.start()
    # The JWT itself is the same if both were made in the same second.
    eventually(lambda: identity_of(device).credentials.received > before.credentials.received, "renewed credentials")
    assert identity_of(device).letter_seed == before.letter_seed
    eventually(lambda: device.log().count('"event": "line.answered"') == 2, "a connection with the new credentials")


def test_a_revoked_device_says_so_and_goes_on_trying(world, device) -> None:
    device.fetch_token(world)
    assert device.enrol().returncode == 0
    device.start()
    eventually(lambda: device.status().get("connected"), "the agent to connect")
    ask(world, "registry", "revoke", DeviceRequest(fleet=device.address.fleet, device=device.address.device))
    eventually(lambda: "refused this device's credentials" in str(device.status().get("problem")), "its problem")
    assert device.process.poll() is None
    text = device.call("status").stdout
    assert "not connected" in text
    assert "causeway-edge enrol --again TOKEN" in text
