"""Bad input of every kind against real services: who sees it, and that nothing else stops.

What an operator does wrong at the command line is in `test_platform_on_one_machine.py`.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_runtime.identity import Identity, load_identity, save_identity
from schemas.envelope import parse, seal
from schemas.registry import Enrol, EventReport
from schemas.topics import Channel, Topic
from services.kit.api.registry import DeviceRequest, TokenRequest
from services.registry.tokens import proof
from tests.support.courier_world import stored
from tests.support.edge import EdgeProcess, ask, show
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import CAPABILITIES, RawDevice, enrol
from tests.support.registry import Link, Thing, admit

KB = 1 << 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    """A platform that no test may break for the next."""
    live = LivePlatform.start(tmp_path_factory.mktemp("world") / "state")
    try:
        for service in ("depot", "registry", "courier"):
            live.start_service(service)
        yield live
        assert all(process.poll() is None for process in live.processes.values())
    finally:
        live.stop()


@pytest.fixture(scope="module")
def cam(world: LivePlatform) -> Iterator[RawDevice]:
    device = RawDevice(world, "cam-1")
    enrol(world, device)
    device.connect()
    device.greet()
    yield device
    device.close()


@pytest.fixture(scope="module")
def stranger(world: LivePlatform) -> Iterator[RawDevice]:
    """A device with credentials that the registry knows nothing of."""
    device = RawDevice(world, "stranger")
    device.connect()
    yield device
    device.close()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Callable[[str], EdgeProcess]]:
    """Makes devices that run the real agent."""
    made: list[EdgeProcess] = []

    def make(name: str) -> EdgeProcess:
        made.append(EdgeProcess.make(tmp_path / name, name))
        return made[-1]

    yield make
    for device in made:
        if device.process is not None:
            device.kill()


def count(live: LivePlatform, service: str, kind: str, reason: str) -> float:
    """What `/metrics` says of refusals."""
    series = f'causeway_rejected_total{{kind="{kind}",reason="{reason}",service="{service}"}} '
    found = [line for line in live.metrics(service).splitlines() if line.startswith(series)]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def logged(live: LivePlatform, service: str, device: str, reason: str) -> bool:
    """Whether one line of a service's log names both."""
    lines = map(json.loads, filter(lambda line: line.startswith("{"), live.log(service).splitlines()))
    return any(
        line.get("reason") == reason and device in f"{line.get('subject')} {line.get('device')}" for line in lines
    )


def kept(live: LivePlatform, service: str, device: str, reason: str) -> list[bytes]:
    """What REJECTS holds of a device for a reason."""
    return [
        body
        for subject, headers, body in stored(live, "REJECTS")
        if subject == f"cw.rejects.{service}"
        and headers["Causeway-Reason"] == reason
        and f".{device}" in headers["Causeway-Subject"]
    ]


@dataclass(frozen=True)
class Case:
    """One message that is refused."""

    channel: Channel
    kind: str
    write: Callable[[RawDevice], bytes]
    service: str
    reason: str
    label: str | None = None
    """Kind in the counter, where it is not the message's own: what a sender made up never becomes a label."""
    known: bool = True


def of_version_2(cam: RawDevice) -> bytes:
    body = parse(cam.write()).body
    assert b"causeway.event.v1" in body
    raw = seal(body.replace(b"causeway.event.v1", b"causeway.event.v2"), cam.signer)
    # Its number is spent: a device that gave it to another letter would be taken for two.
    cam.sent["normal", cam.issued().get("normal", 0) + 1] = ("event", raw)
    return raw


def heartbeat(cam: RawDevice, version: int = 1) -> bytes:
    beat = {"session": cam.session, "uptime_s": 1}
    source = cam.address.source
    event = {"specversion": "1.0", "id": cam.session, "source": source, "type": f"causeway.heartbeat.v{version}"}
    return json.dumps(event | {"time": "2030-01-01T00:00:00Z", "data": beat}).encode()


def blank(size: int) -> Callable[[RawDevice], bytes]:
    return lambda _: b" " * size


LETTER, STATE, PARCEL = Channel.LETTER, Channel.STATE, Channel.PARCEL
CASES = {
    "letter of an unknown device": Case(LETTER, "event", lambda d: d.write(), "courier", "unknown_device", known=False),
    "heartbeat of an unknown device": Case(STATE, "heartbeat", heartbeat, "registry", "unknown_device", known=False),
    "want of an unknown device": Case(
        PARCEL, "want", lambda _: json.dumps({"recipe": "ab" * 32}).encode(), "depot", "not_enrolled", known=False
    ),
    "oversized letter": Case(LETTER, "event", blank(70 * KB), "courier", "oversized"),
    "oversized hello": Case(STATE, "hello", blank(5 * KB), "courier", "oversized"),
    "oversized heartbeat": Case(STATE, "heartbeat", blank(5 * KB), "registry", "oversized"),
    "oversized want": Case(PARCEL, "want", blank(20 * KB), "depot", "oversized"),
    "hello beyond max_payload": Case(STATE, "hello", blank(6 << 20), "courier", "oversized"),
    "piece beyond max_payload": Case(PARCEL, "piece", blank(2 << 20), "depot", "wrong_kind", label="unknown"),
    "malformed letter": Case(LETTER, "event", lambda _: b"{}", "courier", "bad_envelope"),
    "letter whose data does not fit": Case(
        LETTER, "result", lambda d: seal(parse(d.write()).body, d.signer), "courier", "wrong_kind"
    ),
    "malformed heartbeat": Case(STATE, "heartbeat", lambda _: b"\xff{", "registry", "malformed"),
    "malformed want": Case(PARCEL, "want", lambda _: b'{"pieces":["xyz"]}', "depot", "malformed"),
    "letter of another version": Case(LETTER, "event", of_version_2, "courier", "unsupported_version"),
    "heartbeat of another version": Case(
        STATE, "heartbeat", lambda d: heartbeat(d, version=2), "registry", "unsupported_version"
    ),
}


def good_ones_still_work(cam: RawDevice) -> None:
    cam.send()
    cam.settle()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_bad_message_is_counted_logged_and_kept_with_its_reason_and_a_good_one_follows(
    world: LivePlatform, cam: RawDevice, stranger: RawDevice, case: Case
) -> None:
    device = cam if case.known else stranger
    kind = case.label or case.kind
    before = count(world, case.service, kind, case.reason)
    raw = case.write(device)
    device.publish(Topic(device.address, case.channel, case.kind), raw)
    eventually(lambda: count(world, case.service, kind, case.reason) > before, "the counter")
    assert logged(world, case.service, device.name, case.reason)
    assert raw[: 64 * KB] in kept(world, case.service, device.name, case.reason)
    good_ones_still_work(cam)


def test_a_kind_that_was_made_up_is_refused_and_does_not_become_a_label(world: LivePlatform, cam: RawDevice) -> None:
    assert cam._client is not None
    for channel, service in ((LETTER, "courier"), (STATE, "registry")):
        cam._client.publish(f"cw/1/home/{cam.name}/{channel}/made-up", b"{}")
        eventually(lambda: count(world, service, "unknown", "bad_topic"), "the counter")  # noqa: B023
        assert logged(world, service, cam.name, "bad_topic")
        assert "made-up" not in world.metrics(service)
        assert kept(world, service, cam.name, "bad_topic")
    good_ones_still_work(cam)


def test_letters_too_large_for_the_bus_reach_nobody_and_cut_nobody_off(world: LivePlatform, cam: RawDevice) -> None:
    """nats-server 2.9 does not enforce `max_payload` over MQTT; a stored one of 6 MB would cut its readers for ever."""
    for kind, channel in (("event", LETTER), ("heartbeat", STATE)):
        cam.publish(Topic(cam.address, channel, kind), b" " * (6 << 20))
    good_ones_still_work(cam)
    for service in ("registry", "courier", "depot"):
        assert "bus.disconnected" not in world.log(service)
        assert "Slow Consumer" not in world.log("nats-server")


@pytest.mark.parametrize("name", ["cam 1", "cam.1"])
def test_a_topic_that_is_no_identifier_ends_the_connection_and_is_reported(
    world: LivePlatform, cam: RawDevice, name: str
) -> None:
    thing = Thing("clumsy")
    own = admit(world, thing)
    link = Link(world, own.jwt, own.client_id)
    assert link.accepted()
    before = count(world, "registry", "connection", "bad_topic")
    link.say(f"cw/1/home/{name}/letter/event", b"{}")
    eventually(lambda: count(world, "registry", "connection", "bad_topic") > before, "the counter")
    assert logged(world, "registry", "home/clumsy", "bad_topic")
    link.close()
    good_ones_still_work(cam)


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


def test_what_a_device_refused_is_counted_and_logged_where_operators_look(world: LivePlatform, cam: RawDevice) -> None:
    for reason in ("wrong_digest", "made_up_by_the_device"):
        report = EventReport(
            name="piece.refused", severity="high", reason=reason, message="piece ab12: its bytes have another digest"
        )
        cam.send("event", report, lane="control")
    cam.settle()
    for reason in ("wrong_digest", "other"):
        series = f'causeway_device_refusals_total{{event="piece.refused",reason="{reason}"}} 1.0'
        eventually(lambda: series in world.metrics("registry"), series)  # noqa: B023
    assert logged(world, "registry", str(cam.address), "wrong_digest")


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
    except FileNotFoundError:
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
