"""`causeway init` and `causeway up` as an operator meets them, with the mistakes that operators make."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from causeway.learning.export import to_onnx
from edge_runtime.learning.catalogue import build_estimator
from tests.support.platform import eventually

CAUSEWAY = [sys.executable, "-m", "causeway.cli.main"]


def causeway(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CAUSEWAY, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"COLUMNS": "200"} | (environment or {}),
    )


def start_up(state: Path) -> subprocess.Popen[bytes]:
    with (state.parent / "up.out").open("ab") as out:
        process = subprocess.Popen(
            [*CAUSEWAY, "up", "--state", str(state)], stdout=out, stderr=out, env=os.environ | {"COLUMNS": "200"}
        )

    def is_up() -> bool:
        told = (state.parent / "up.out").read_text()
        assert process.poll() is None, told
        return "Ctrl-C ends" in told

    eventually(is_up, "the platform to be up", timeout_s=60)
    return process


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A platform that `causeway up` runs."""
    state = tmp_path_factory.mktemp("platform") / "state"
    made = causeway("init", "--state", str(state), "--free-ports", "--fleet", "harbour")
    assert made.returncode == 0, made.stderr
    process = start_up(state)
    yield state
    process.send_signal(signal.SIGINT)
    process.wait(30)


def pids(state: Path) -> dict[str, int]:
    return json.loads((state / "run" / "pids.json").read_text())


def test_everything_is_private(up: Path) -> None:
    for path in up.rglob("*"):
        if "nats" in path.relative_to(up).parts or "logs" in path.relative_to(up).parts or path.is_socket():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        secret = path.suffix in {".creds", ".nk", ".key", ".pem"} or path.name in {"nats.conf", "settings.toml"}
        if secret or path.parent == up:
            assert mode & 0o077 == 0, f"{path} has mode {mode:o}"


def test_a_second_init_is_refused_and_changes_nothing(up: Path) -> None:
    before = (up / "settings.toml").read_bytes()
    again = causeway("init", "--state", str(up))
    assert again.returncode == 4
    assert "there is a platform already" in again.stderr
    assert "causeway up" in again.stderr
    assert (up / "settings.toml").read_bytes() == before


def test_a_second_up_is_refused_and_names_the_first(up: Path) -> None:
    again = causeway("up", "--state", str(up))
    assert again.returncode == 4
    assert re.search(r"it is up already \(process \d+\)", again.stderr)
    assert str(pids(up)["causeway"]) in again.stderr


def test_a_killed_service_comes_back(up: Path) -> None:
    before = pids(up)["ota"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: pids(up).get("ota", before) != before, "ota to be started again")
    eventually(
        lambda: causeway("rollout", "list", "--state", str(up), "--json").returncode == 0, "ota to answer", timeout_s=30
    )


def test_status_over_http(up: Path) -> None:
    port = next(
        int(line.split("=")[1]) for line in (up / "settings.toml").read_text().splitlines() if "gateway_port" in line
    )
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"devices_connected_total" in answer.read()


def test_unknown_things_exit_with_3(up: Path) -> None:
    unknown = causeway("device", "show", "nobody", "--state", str(up))
    assert unknown.returncode == 3, unknown.stderr
    assert "nobody" in unknown.stderr


def one_release(folder: Path) -> str:
    weights = build_estimator("classifier@1", {}, seed=0).get_weights()
    (folder / "model.onnx").write_bytes(to_onnx(weights))
    return str(folder / "model.onnx")


@pytest.mark.parametrize(
    "command",
    [
        ["device", "list"],
        ["release", "list"],
        ["rollout", "list"],
        ["task", "submit", "nobody-has@1"],
        ["train", "list"],
        ["data", "shard", "--out", "OUT/shards"],
        ["device", "enrol", "cam-json", "--out", "OUT/cam.token"],
        ["release", "stage", "MODEL", "--model", "json", "--version", "1.0.0", "-o", "OUT/m.release.json"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_with_json_standard_output_holds_nothing_else(up: Path, tmp_path: Path, command: list[str]) -> None:
    model = one_release(tmp_path)
    filled = [part.replace("OUT", str(tmp_path)).replace("MODEL", model) for part in command]
    state = [] if command[0] == "data" else ["--state", str(up)]
    done = causeway(*filled, *state, "--json")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def test_an_unsigned_release_is_refused_and_says_what_is_missing(up: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "m.release.json")
    staged = causeway(
        *("release", "stage", one_release(tmp_path), "--model", "m", "--version", "1.0.0"),
        *("-o", file, "--state", str(up)),
    )
    assert staged.returncode == 0, staged.stderr
    refused = causeway("release", "publish", file, "--state", str(up))
    assert refused.returncode == 4
    assert "lacks 1 of 1 signatures" in refused.stderr
    assert "causeway release sign" in refused.stderr


BAD = [
    (2, "ONNX Runtime cannot load it", "release stage TEXT --model m --version 1.0.0"),
    (2, "name the file", "release stage OUT/nothing.onnx --model m --version 1.0.0"),
    (2, "is not a version", "release stage MODEL --model m --version 1,0"),
    (2, "causeway release stage", "release publish OUT/nothing.json"),
    (3, "causeway release list", "rollout create nothing 1.0.0"),
    (3, "causeway rollout list", "rollout abort 01J00000000000000000000000"),
    (2, "'x' is not an id", "rollout watch x"),
    (2, "not a list of numbers", "rollout create m 1.0.0 --waves a,b"),
    (2, "not a list of numbers", "rollout create m 1.0.0 --waves nan,1"),
    (2, "--deadline takes a number from 0.01 to 2592000", "rollout create m 1.0.0 --deadline -1"),
    (2, "name@version", "task submit profile"),
    (2, "--deadline takes a number from 0.01 to 86400", "task submit profile@1 --deadline 1e300"),
    (2, "name=value", "task submit profile@1 -i digits"),
    (3, "causeway task list", "task show 01J00000000000000000000000"),
    (4, "have dataset nothing", "train start j --dataset nothing"),
    (4, "known are classifier@1", "train start k --dataset digits --estimator other@1"),
    (2, "--max-attempts takes a whole number from 1 to 1000", "train start l --dataset digits --max-attempts 0"),
    (3, "causeway train list", "train watch nothing"),
    (2, "there is no folder", "device enrol cam-2 --out OUT/nothing/cam.token"),
    (2, "not an identifier", "device list --fleet a.b"),
    (2, "--alpha takes a number from 0.001", "data shard --out OUT/s --alpha -1"),
]


@pytest.mark.parametrize(("code", "told", "line"), BAD, ids=[line for _, _, line in BAD])
def test_a_wrong_command_ends_with_a_sentence_and_its_exit_code(
    up: Path, tmp_path: Path, code: int, told: str, line: str
) -> None:
    (tmp_path / "text").write_text("no model")
    names = {"OUT": str(tmp_path), "TEXT": str(tmp_path / "text"), "MODEL": one_release(tmp_path)}
    words = line.split()
    for name, value in names.items():
        words = [word.replace(name, value) for word in words]
    state = [] if words[0] == "data" or words[:2] == ["release", "sign"] else ["--state", str(up)]
    refused = causeway(*words, *state)
    assert refused.returncode == code, refused.stderr
    assert told in refused.stderr
    assert refused.stderr.startswith("causeway: ")
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["cam.1", "cam 1", "cam/1", "cam+", "#"])
def test_a_bad_identifier_is_refused_with_what_is_allowed(up: Path, name: str) -> None:
    refused = causeway("device", "enrol", name, "--state", str(up))
    assert refused.returncode == 2
    assert "no dots, blanks, slashes or wildcards" in refused.stderr


def test_a_token_file_is_not_overwritten(up: Path, tmp_path: Path) -> None:
    out = tmp_path / "cam-9.token"
    assert causeway("device", "enrol", "cam-9", "--out", str(out), "--state", str(up)).returncode == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    again = causeway("device", "enrol", "cam-9", "--out", str(out), "--state", str(up))
    assert again.returncode == 4
    assert "--force" in again.stderr


def test_commands_without_a_platform_say_what_to_do(tmp_path: Path) -> None:
    for command in (["up"], ["device", "list"], ["train", "list"]):
        refused = causeway(*command, "--state", str(tmp_path / "nothing"))
        assert refused.returncode == 2, command
        assert "causeway init" in refused.stderr


def test_commands_on_a_platform_that_is_down_say_so(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert causeway("init", "--state", str(state), "--free-ports").returncode == 0
    down = causeway("device", "list", "--state", str(state))
    assert down.returncode == 5
    assert "causeway up" in down.stderr


def test_a_port_in_use_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        state = tmp_path / "state"
        made = causeway("init", "--state", str(state), "--free-ports", "--mqtt-port", str(port))
        assert made.returncode == 0, made.stderr
        refused = causeway("up", "--state", str(state))
    assert refused.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in refused.stderr
    assert "bus.mqtt_port" in refused.stderr


def test_a_bad_identifier_in_the_settings_is_named(up: Path) -> None:
    refused = causeway("device", "list", "--state", str(up), environment={"CAUSEWAY_FLEET": "a b"})
    assert refused.returncode == 2
    assert "fleet: 'a b' is not an identifier" in refused.stderr


def test_a_missing_nats_server_is_named_with_its_package(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert causeway("init", "--state", str(state), "--free-ports").returncode == 0
    code = (
        "import causeway.platform.nats_server as n, sys; n.shutil.which = lambda *a, **k: None; "
        "from causeway.cli.main import main; sys.argv = ['causeway', 'up', '--state', sys.argv[1]]; main()"
    )
    refused = subprocess.run(
        [sys.executable, "-c", code, str(state)], capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 2
    assert "apt-get install nats-server" in refused.stderr.replace("\n", " ")


def test_clear_text_is_refused_off_this_machine(tmp_path: Path) -> None:
    refused = causeway("init", "--state", str(tmp_path / "state"), "--no-tls", "--host", "192.0.2.1")
    assert refused.returncode == 2
    assert "without TLS only 127.0.0.1 is served" in refused.stderr


def test_an_old_python_is_refused_by_the_installer(tmp_path: Path) -> None:
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    fake.chmod(0o755)
    script = Path(__file__).parents[2] / "infra" / "install-system"
    refused = subprocess.run(
        [str(script)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHON": str(fake)},
    )
    assert refused.returncode == 1
    assert "Python 3.9.2 is too old: it needs Python 3.11 or newer" in refused.stderr


@pytest.mark.parametrize("module", ["causeway.cli.main", "edge_runtime.cli", "services.courier.__main__"])
def test_an_old_python_is_refused_by_every_program(module: str) -> None:
    code = f"import sys; sys.version_info = (3, 10, 4); import {module}"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert refused.returncode == 2
    assert "Python 3.10.4 is too old: it needs Python 3.11 or newer" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert causeway("init", "--state", str(state), "--free-ports").returncode == 0
    process = start_up(state)
    children = pids(state)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert [name for name, pid in children.items() if Path(f"/proc/{pid}").exists()] == []
