"""What is wrong with a device itself: its credentials, token, disk or settings; real agents against real services."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.identity import Identity, load_identity, save_identity
from schemas.registry import Enrol
from services.kit.api.registry import DeviceRequest, TokenRequest
from services.registry.tokens import proof
from tests.support.edge import EdgeProcess, ask, show
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import CAPABILITIES, RawDevice
from tests.support.refusals import count, good_ones_still_work, kept, logged
from tests.support.registry import Thing, admit


@pytest.mark.parametrize("reason", ["expired", "wrong_credential", "revoked"])
def test_a_credential_that_is_worth_nothing_is_told_to_both_sides(
    world: LivePlatform, cam: RawDevice, edge: Callable[[str], EdgeProcess], reason: str
) -> None:
    device = edge(f"edge-{reason.replace('_', '-')}")
    device.fetch_token(world)
    assert device.enrol().returncode == 0
    path = device.folder / "state" / "identity.json"
    identity = load_identity(path)
    assert identity is not None
    assert identity.credentials is not None
    if reason == "revoked":
        ask(world, "registry", "revoke", DeviceRequest(fleet="home", device=device.address.device))
    else:
        save_identity(path, with_password(identity, spoilt(world, device, identity, reason)))
    before = count(world, "registry", "connection", reason)
    device.start()
    eventually(lambda: count(world, "registry", "connection", reason) > before, "the platform's counter")
    eventually(lambda: "link.refused" in device.log(), "the device's log")
    assert "enrol anew with a token" in device.log()
    eventually(lambda: "expired or were revoked" in (device.status().get("problem") or ""), "its status")
    assert "they expired or were revoked" in device.call("status").stdout
    assert device.stop() == 0
    if reason != "wrong_credential":
        assert logged(world, "registry", str(device.address), reason)
    said = world.log("registry") + device.log()
    assert identity.credentials.jwt not in said
    assert identity.credentials.client_id not in said
    good_ones_still_work(cam)


def spoilt(world: LivePlatform, device: EdgeProcess, identity: Identity, reason: str) -> str:
    assert identity.credentials is not None
    if reason == "wrong_credential":
        return identity.credentials.jwt[:-8] + "AAAAAAAA"
    thing = Thing(device.address.device)
    thing.signer = identity.signer
    thing.public_key = base64.b64encode(identity.signer.public_key).decode()
    return admit(world, thing, life_s=-5).jwt


def with_password(identity: Identity, jwt: str) -> Identity:
    assert identity.credentials is not None
    return identity.model_copy(update={"credentials": identity.credentials.model_copy(update={"jwt": jwt})})


def test_a_used_and_an_expired_token_are_refused_counted_and_kept(world: LivePlatform, cam: RawDevice) -> None:
    def try_token(ttl_s: float, *devices: RawDevice) -> None:
        token = ask(world, "registry", "token", TokenRequest(fleet="home", device=devices[0].name, ttl_s=ttl_s))
        for device in devices:
            key = base64.b64encode(device.signer.public_key).decode()
            request = Enrol(
                token=token["token"],
                public_key=key,
                seal_key=key,
                proof=proof(token["secret"], key, key, device.address),
                capabilities=CAPABILITIES,
            )
            device.connect()
            device.send("enrol", request, lane="control")
            device.settle()

    owner, thief = RawDevice(world, "cam-7", bootstrap=True), RawDevice(world, "cam-7", bootstrap=True)
    late = RawDevice(world, "cam-8", bootstrap=True)
    try_token(3_600, owner, thief)
    try_token(0.001, late)
    for device, reason in ((thief, "token_used"), (late, "token_expired")):
        eventually(lambda: count(world, "registry", "enrol", reason) == 1, f"the counter of {reason}")  # noqa: B023
        assert logged(world, "registry", device.name, reason)
        eventually(lambda: kept(world, "registry", device.name, reason), f"the letter of {device.name}")  # noqa: B023
    for device in (owner, thief, late):
        device.close()
    assert show(world, owner.address)["standing"] == "enrolled"
    good_ones_still_work(cam)


SEND = """
import sys
from edge_runtime.sdk import EdgeDevice, OutboxError
with EdgeDevice(sys.argv[1]) as host:
    try:
        for number in range(int(sys.argv[2])):
            host.send("sample", {"text": "x" * 20_000})
        print("sent", number + 1, host.storage)
    except OutboxError as error:
        print(error.reason, error)
"""


def small_disks() -> bool:
    """Whether a disk of its own can be given to a process here."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


@pytest.mark.skipif(not small_disks(), reason="needs the right to mount a small tmpfs in a user namespace")
def test_on_a_full_disk_letters_go_on_in_memory_the_agent_lives_on_and_what_dies_with_a_program_is_named(
    world: LivePlatform, edge: Callable[[str], EdgeProcess]
) -> None:
    device = edge("small-disk")
    device.fetch_token(world)
    assert device.enrol().returncode == 0
    state = device.folder / "state"
    script = (
        'cp -a "$1" "$1.copy" && mount -t tmpfs -o size=8m none "$1" && cp -a "$1.copy/." "$1" && shift && exec "$@"'
    )
    command = [sys.executable, "-m", "edge_runtime", "run", "--config", str(device.folder / "edge.toml")]
    with (device.folder / "log").open("wb") as log:
        device.process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script, "sh", str(state), *command],
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    eventually(lambda: show(world, device.address).get("heartbeat"), "a heartbeat")
    inside = Path(f"/proc/{device.process.pid}/root{device.folder}")
    filler = inside / "state" / "filler"
    fill(filler)
    config = str(device.folder / "edge.toml")
    # From inside, since SQLite resolves the link through /proc to the disk out here.
    there = ["nsenter", f"--target={device.process.pid}", "--user", "--mount", "--preserve-credentials"]
    send = [*there, sys.executable, "-c", SEND, config]
    full = subprocess.run([*send, "100"], capture_output=True, text=True, timeout=60, check=False)
    assert (full.returncode, full.stdout) == (0, "sent 100 memory\n"), full.stderr
    assert "outbox.in_memory" in full.stderr
    # The program ended before there was room again.
    assert "outbox.lost" in full.stderr
    seen = show(world, device.address)["last_seen"]
    eventually(lambda: show(world, device.address)["last_seen"] > seen + 0.5, "heartbeats to go on")
    filler.unlink()
    again = subprocess.run([*send, "1"], capture_output=True, text=True, timeout=60, check=False)
    assert (again.returncode, again.stdout, again.stderr) == (0, "sent 1 disk\n", "")
    eventually(lambda: json.loads((inside / "state" / "status.json").read_text())["connected"], "the link")
    heard = time.time()
    eventually(lambda: show(world, device.address)["last_seen"] > heard, "the agent to be well")
    assert device.stop() == 0


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                assert error.errno == 28, error  # noqa: PT017


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('[datasets]\n"my data" = "x.npz"', "'my data' is not an identifier"),
        ('[runners]\n"profile" = "a:b"', "'profile' is not of the form name@version"),
        ("heartbeat = 3", "heartbeat"),
        ("[outbox]\nmax_bytes = -1", "outbox.max_bytes"),
        ("not toml", "not TOML"),
    ],
)
def test_bad_settings_of_a_device_are_named(tmp_path: Path, line: str, told: str) -> None:
    device = EdgeProcess.make(tmp_path / "device", "cam-1", line)
    refused = device.call("run")
    assert refused.returncode == 2
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr
