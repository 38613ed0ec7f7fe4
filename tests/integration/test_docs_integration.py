"""The programs of docs/integration.md, as they stand there, against a real platform."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from nats.js.errors import APIError

from schemas.events import Untyped
from services.kit.bus import Bus
from services.kit.credentials import decode_jwt
from tests.support.commands import cli, cli_json
from tests.support.courier_world import ids, letters, speaking
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, in_bus

PAGE = Path(__file__).parents[2] / "docs" / "integration.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
COMMAND = re.findall(r"^causeway (letters reader .*?) *#", PAGE.read_text(), re.MULTILINE)


@pytest.fixture
def cam(live: LivePlatform) -> Iterator[RawDevice]:
    device = speaking(live)
    yield device
    device.close()


class Program:
    """One of the page's programs, in a folder with the platform's state at `.causeway`."""

    def __init__(self, live: LivePlatform, folder: Path, text: str) -> None:
        (folder / ".causeway").symlink_to(live.state.root)
        self._folder = folder
        self._file = folder / "program.py"
        self._file.write_text(text.replace("tls://127.0.0.1:4222", live.settings.bus.nats_url))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, self._file.name], cwd=self._folder, stdout=log, stderr=log
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)

    def numbers(self) -> list[int]:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        if not (self._folder / "samples.db").exists():
            return []
        database = sqlite3.connect(self._folder / "samples.db")
        try:
            return [
                json.loads(data)["number"] for (data,) in database.execute("SELECT data FROM samples ORDER BY rowid")
            ]
        except sqlite3.OperationalError:
            return []  # it has not made its table yet
        finally:
            database.close()


def sampled(device: RawDevice, numbers: range) -> None:
    for number in numbers:
        device.send("sample", Untyped.model_validate({"number": number}))
    device.settle()


@pytest.mark.parametrize("text", PROGRAMS, ids=["nats-py", "faststream"])
def test_a_program_of_the_page_has_each_sample_once_also_when_it_is_killed(
    live: LivePlatform, cam: RawDevice, tmp_path: Path, text: str
) -> None:
    (words,) = COMMAND
    assert ".causeway" not in words
    cli(live, *words.split())
    sampled(cam, range(50))
    program = Program(live, tmp_path, text)
    try:
        program.start()
        eventually(lambda: len(program.numbers()) >= 50, "the first samples")
        program.kill()
        sampled(cam, range(50, 100))
        program.start()
        eventually(lambda: len(program.numbers()) >= 100, "the rest", 40)
        assert sorted(program.numbers()) == list(range(100))
    finally:
        program.kill()


def test_a_reader_reads_its_kinds_and_nothing_else(live: LivePlatform, cam: RawDevice) -> None:
    made = cli_json(live, "letters", "reader", "dashboard", "--kind", "sample")
    assert made["sources"][0]["consumer"] == "dashboard-sample"
    assert live.state.creds("dashboard").stat().st_mode & 0o777 == 0o600
    sampled(cam, range(3))
    assert letters(live, "sample") == ids(cam, "normal", 4)[1:]

    async def events(bus: Bus) -> None:
        await bus.nc.jetstream(timeout=1).pull_subscribe("cw.in.event.>", durable="dashboard-sample", stream="IN")

    async def disguised(bus: Bus) -> None:
        request = {"stream_name": "IN", "config": {"durable_name": "dashboard-sample", "name": "dashboard-sample"}}
        request["config"] |= {"filter_subject": "cw.in.event.>", "ack_policy": "explicit"}  # type: ignore[operator]
        subject = "CONSUMER.CREATE.IN.dashboard-sample.cw.in.sample.>"
        await bus.js._api_request(f"$JS.API.{subject}", json.dumps(request).encode(), timeout=2)

    for attempt in (events, disguised):
        with pytest.raises((TimeoutError, APIError)):
            in_bus(live, "dashboard", attempt)

    async def read(bus: Bus) -> int:
        letters = await bus.js.pull_subscribe("cw.in.sample.>", durable="dashboard-sample", stream="IN")
        batch = await letters.fetch(1, timeout=5)
        await batch[0].ack_sync()
        return batch[0].metadata.sequence.consumer

    assert in_bus(live, "dashboard", read) == 1
    # Renewed, they go on where they were.
    renewed = cli_json(live, "letters", "reader", "dashboard", "--kind", "sample", "--days", "1")
    assert timedelta(days=363) < _end(made) - _end(renewed) <= timedelta(days=364)
    text = live.state.creds("dashboard").read_text()
    assert decode_jwt(text.splitlines()[1])["exp"] == _end(renewed).timestamp()
    assert in_bus(live, "dashboard", read) == 2


def _end(made: dict[str, str]) -> datetime:
    return datetime.fromisoformat(made["expires"])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("courier", "--kind", "sample"), 4, "part of the platform"),
        (("a.b", "--kind", "sample"), 2, "identifier"),
        (("dashboard", "--kind", "samples"), 2, "known are"),
        (("dashboard",), 2, "--kind"),
    ],
)
def test_a_reader_of_a_wrong_name_or_kind_is_refused(
    live: LivePlatform, words: tuple[str, ...], code: int, told: str
) -> None:
    before = live.state.creds("courier").read_bytes()
    assert told in cli(live, "letters", "reader", *words, code=code)
    assert live.state.creds("courier").read_bytes() == before
    assert not live.state.creds("dashboard").exists()
