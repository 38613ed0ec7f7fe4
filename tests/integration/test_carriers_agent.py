"""A device without any network: its agent runs, speaks through a folder, and acts on what comes back that way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ulid import ULID

from edge_runtime.agent import Agent
from edge_runtime.conduct import policy
from edge_runtime.folder import write_durable
from edge_runtime.identity import Credentials, save_identity
from edge_runtime.settings import load_settings
from schemas.bundles import CarriedLetter, Contents, Parcel, read_parcel
from schemas.letters import write_down
from schemas.registry import EventReport, Twin
from tests.support.carriers import Realm, Traveller, letters_of
from tests.support.platform import until


class Remote:
    """A device that was enrolled once and never sees its platform again."""

    def __init__(self, root: Path, extra: str = "") -> None:
        self.realm = Realm()
        self.device = Traveller(self.realm, root / "state", "remote")
        self.device.close()
        now = datetime.now(UTC)
        credentials = Credentials(jwt="a.b.c", client_id="x" * 22, received=now, expires=now + timedelta(days=30))
        self.identity = self.device.identity.model_copy(
            update={"url": "mqtts://127.0.0.1:9", "credentials": credentials}
        )
        save_identity(root / "state" / "identity.json", self.identity)
        self.config = root / "edge.toml"
        self.config.write_text(f'state = "state"\n{extra}')
        self.sync = root / "sync"
        self.sync.mkdir()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        agent, started = Agent(load_settings(self.config)), asyncio.Event()
        task = asyncio.create_task(agent.run(started.set))
        try:
            await asyncio.wait({task, asyncio.create_task(started.wait())}, return_when=asyncio.FIRST_COMPLETED)
            yield agent
        finally:
            agent.stop()
            await task

    def command(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "edge_runtime", *arguments, "--json", "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def up(self, folder: Path) -> dict[str, list[Parcel]]:
        found: dict[str, list[Parcel]] = {}
        for path in sorted((folder / "causeway" / "up").glob("*.bundle")):
            parcel = read_parcel(path.read_bytes())
            found.setdefault(parcel.head.id, []).append(parcel)
        return found

    def down(self, folder: Path, contents: Contents, *acknowledges: str) -> None:
        for parcel in self.realm.answer(self.device, contents, acknowledges=acknowledges):
            path = folder / "causeway" / "down" / "home.remote" / f"{parcel.head.id}.{parcel.key[1]}.bundle"
            write_durable(path, parcel.on_its_way(hops=1, copies=1, age_s=0).write())

    def config_letter(self, heartbeat_s: float) -> CarriedLetter:
        now = datetime.now(UTC)
        raw = write_down(
            "config",
            Twin(heartbeat_s=heartbeat_s),
            letter_id=str(ULID()),
            service="registry",
            address=self.device.address,
            platform=self.realm.platform,
            time=now,
            expires=now + timedelta(days=1),
            generation=1,
            revision=1,
            slot="-",
            signer=self.realm.signers["registry"],
        )
        return CarriedLetter(kind="config", envelope=raw.decode())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No half minutes of hope that the link comes back."""
    for lane in policy.PATIENCE_S:
        monkeypatch.setitem(policy.PATIENCE_S, lane, 0.1)


@pytest.mark.usefixtures("impatient")
async def test_a_synced_folder_carries_both_ways_while_the_agent_runs(tmp_path: Path) -> None:
    remote = Remote(tmp_path, '[carriers]\nfolder = "sync"\nfolder_poll_s = 0.2\n')
    async with remote.running() as agent:
        agent.send("event", _event("from the desert"))
        await until(lambda: remote.up(remote.sync), "a bundle in the folder")
        (bundle,) = remote.up(remote.sync)
        contents = remote.realm.open(remote.up(remote.sync)[bundle])
        assert [letter.data.message for letter in letters_of(contents)] == ["from the desert"]
        assert contents.hello is not None
        receipt = Contents(
            letters=[
                remote.realm.receipt(
                    remote.device.address, contents.hello.epoch, contents.hello.session, {"normal": 1}
                ),
                remote.config_letter(7.0),
            ]
        )
        remote.down(remote.sync, receipt, bundle)
        outbox = agent._outbox
        await until(lambda: outbox.lanes()["normal"] == (1, 1), "the receipt to count")
        await until(lambda: agent._twin is not None and agent._twin.heartbeat_s == 7.0, "the twin")
        await until(lambda: bundle not in remote.up(remote.sync), "the delivered bundle to be taken out")
        stored = agent._inbox.newest_ids(8)
        status = agent._chores._house.vitals.status({})
        assert status["carriers"]["transport"] == "folder"
        assert "no neighbour" in status["carriers"]["reason"]
        exchange = lambda: agent._chores._house.vitals.status({})["carriers"]["folder_exchange"]
        await until(lambda: exchange() and exchange()["refused"] == 0, "the exchange to be told of")
    assert list((remote.sync / "causeway" / "down" / "home.remote").glob("*.bundle")) == []
    told = remote.command("bundle", "export", str(remote.sync))
    assert told["problem"] is None
    opened = [remote.realm.open(parcels) for parcels in remote.up(remote.sync).values()]
    assert any(stored[0] in contents.got for contents in opened), "the platform hears what has arrived"


async def test_a_stick_is_read_while_no_agent_runs_and_acted_on_at_the_next_start(tmp_path: Path) -> None:
    remote = Remote(tmp_path)
    stick = tmp_path / "stick"
    stick.mkdir()
    exported = remote.command("bundle", "export", str(stick))
    assert (exported["bundles"], exported["problem"]) == (1, None)
    (bundle,) = remote.up(stick)
    remote.down(stick, Contents(letters=[remote.config_letter(9.0)]), bundle)
    imported = remote.command("bundle", "import", str(stick))
    assert (imported["arrived"], imported["complete"], imported["agent_runs"]) == (1, 1, False)
    async with remote.running() as agent:
        await until(lambda: agent._twin is not None and agent._twin.heartbeat_s == 9.0, "the twin")
        assert agent._carriers is not None
        assert agent._carriers.station.store.packed() == [], "the question was acknowledged"


async def test_a_stick_is_read_beside_a_running_agent(tmp_path: Path) -> None:
    remote = Remote(tmp_path)
    stick = tmp_path / "stick"
    stick.mkdir()
    async with remote.running() as agent:
        remote.down(stick, Contents(letters=[remote.config_letter(11.0)]))
        imported = await asyncio.to_thread(remote.command, "bundle", "import", str(stick))
        assert imported["complete"] == 1
        await until(lambda: agent._twin is not None and agent._twin.heartbeat_s == 11.0, "the twin")
        assert await asyncio.to_thread(remote.command, "bundle", "export", str(stick))


async def test_an_old_receipt_by_carrier_does_not_undo_a_newer_one(tmp_path: Path) -> None:
    remote = Remote(tmp_path)
    async with remote.running() as agent:
        for n in range(3):
            agent.send("event", _event(str(n)))
        epoch, line = agent._outbox.epoch, agent._line
        assert agent._carriers is not None
        session = agent._carriers.station.custodian.packer.session()
        to = remote.device.address
        old = remote.realm.receipt(to, epoch, session, {"normal": 1})
        new = remote.realm.receipt(to, epoch, session, {"normal": 2})
        other = remote.realm.receipt(to, epoch, str(ULID()), {"normal": 3})
        for letter in (new, old, other, new):
            line.take_receipt(letter.envelope.encode())
            assert agent._outbox.lanes()["normal"] == (3, 2)
        # The courier lost letters, or an operator recalls them: its newest word counts, whoever brings it.
        overtaken = remote.realm.receipt(to, epoch, session, {"normal": 3})
        lowered = remote.realm.receipt(to, epoch, session, {})
        for letter in (lowered, overtaken, new, old):
            line.take_receipt(letter.envelope.encode())
            assert agent._outbox.lanes()["normal"] == (3, 0)
        line.take_receipt(remote.realm.receipt(to, epoch, session, {"normal": 9}).envelope.encode())
        assert agent._outbox.epoch != epoch, "the courier holds letters that were never issued here"


def _event(text: str) -> EventReport:
    return EventReport(name="said", severity="info", reason="test", message=text)


def test_the_command_says_which_files_are_bad_and_why_and_ends_as_the_platforms_does(tmp_path: Path) -> None:
    remote = Remote(tmp_path)
    stick = tmp_path / "stick"
    remote.down(stick, Contents(letters=[remote.config_letter(9.0)]))
    bad = stick / "causeway" / "down" / "home.remote" / f"{ULID()}.0.bundle"
    bad.write_bytes(b"CWB1 junk")
    command = [sys.executable, "-m", "edge_runtime", "bundle", "import", str(stick), "--config", str(remote.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    assert "(1 bundle complete)" in done.stdout, "the good one was taken all the same"
    assert f"refused: down/home.remote/{bad.name}: " in done.stdout
    assert "ends too early" in done.stdout
    assert bad.exists()
    bad.unlink()
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
