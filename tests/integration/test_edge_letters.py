"""Letters both ways between a real agent and the real services, while things die."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import NotFoundError
from ulid import ULID

from edge_runtime.sdk import EdgeDevice
from schemas.envelope import Signer, parse
from schemas.events import Message
from schemas.ids import Address
from schemas.letters import read_up, write_down
from schemas.registry import Recall, Twin
from schemas.scheduler import Cancel
from schemas.topics import Channel, Topic
from services.kit.bus import Bus
from services.kit.keys import read_letter_key
from tests.support.courier_world import post
from tests.support.edge import EdgeProcess
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import in_bus


@pytest.fixture
def device(platform: LivePlatform, tmp_path: Path) -> Iterator[EdgeProcess]:
    with EdgeProcess.make(tmp_path / "device", "cam-1").admit(platform) as made:
        yield made


def letters_in(live: LivePlatform, kind: str) -> list[Any]:
    """Every letter of a kind that IN holds, in its order."""

    async def read(bus: Bus) -> list[Any]:
        state = (await bus.js.stream_info("IN")).state
        found = []
        for sequence in range(state.first_seq, state.last_seq + 1):
            try:
                message = await bus.js.get_msg("IN", sequence)
            except NotFoundError:
                continue
            if message.subject.startswith(f"cw.in.{kind}."):
                found.append(read_up(parse(message.data).body, kind))
        return found

    return in_bus(live, "auditor", read)


def numbers_in(live: LivePlatform) -> list[int]:
    return [letter.data.number for letter in letters_in(live, "sample")]


def refusals_in(live: LivePlatform) -> list[str]:
    return [letter.data.reason for letter in letters_in(live, "event") if letter.data.name == "letter.refused"]


def push(live: LivePlatform, address: Address, kind: str, raw: bytes) -> None:
    """Bytes straight to the device, as a stolen courier could."""

    async def send(bus: Bus) -> None:
        await bus.nc.publish(Topic(address, Channel.DOWN, kind).subject, raw)
        await bus.nc.flush()

    in_bus(live, "courier", send)


def connected(device: EdgeProcess) -> None:
    eventually(
        lambda: device.status().get("connected") and device.status().get("pid") == device.process.pid, "the agent"
    )


def test_letters_written_offline_arrive_once_and_in_order(platform, device) -> None:
    with EdgeDevice(device.folder / "edge.toml") as host:
        for number in range(40):
            host.send("sample", {"number": number})
    device.start()
    connected(device)
    with EdgeDevice(device.folder / "edge.toml") as host:
        host.send("sample", {"number": 40})
    eventually(lambda: device.rows("SELECT mark FROM lanes WHERE lane = 'normal'") == [(41,)], "all receipts")
    assert numbers_in(platform) == list(range(41))


def test_a_letter_that_cannot_be_signed_is_given_up_by_name_and_the_others_go_on(platform, device) -> None:
    with EdgeDevice(device.folder / "edge.toml") as host:
        ids = [host.send("sample", {"number": number}) for number in range(5)]
    with sqlite3.connect(device.folder / "state" / "outbox.db") as file:
        file.execute("UPDATE letters SET data = 'torn' WHERE id = ?", (ids[1],))
        file.execute("UPDATE letters SET time = 1e300 WHERE id = ?", (ids[3],))
        file.execute("UPDATE lanes SET issued = 'torn'")
    file.close()
    device.start()
    eventually(lambda: numbers_in(platform) == [0, 2, 4], "the others")
    assert device.stop() == 0
    device.start()  # losses are told at once then
    reports = eventually(lambda: letters_in(platform, "losses"), "the losses")
    told = [loss for report in reports for loss in report.data.losses]
    assert [(loss.reason, [name.id for name in loss.names]) for loss in told] == [
        ("unsendable", [ids[1]]),
        ("unsendable", [ids[3]]),
    ]
    assert device.stop() == 0
    assert device.log().count("letters.unsendable") == 2


def test_nothing_is_lost_when_courier_agent_and_bus_are_killed(platform, device) -> None:
    device.start()
    connected(device)
    with EdgeDevice(device.folder / "edge.toml") as host:
        for number in range(300):
            host.send("sample", {"number": number})
            if number == 60:
                platform.kill("courier")
            if number == 120:
                platform.start_service("courier")
            if number == 150:
                device.kill()
            if number == 200:
                device.start()
            if number == 220:
                platform.kill("nats-server")
            if number == 240:
                platform.start_bus()
    eventually(lambda: device.rows("SELECT mark FROM lanes WHERE lane = 'normal'") == [(300,)], "all receipts", 60)
    assert numbers_in(platform) == list(range(300))
    assert device.stop() == 0


def test_a_restored_disk_image_starts_a_new_epoch_and_says_so(platform, device) -> None:
    state = device.folder / "state"
    image = device.folder / "image"
    shutil.copytree(state, image)
    device.start()
    connected(device)
    with EdgeDevice(device.folder / "edge.toml") as host:
        for number in range(5):
            host.send("sample", {"number": number})
    eventually(lambda: device.rows("SELECT mark FROM lanes WHERE lane = 'normal'") == [(5,)], "all receipts")
    device.stop()
    old = device.rows("SELECT value FROM meta WHERE key = 'epoch'")
    shutil.rmtree(state)
    shutil.copytree(image, state)
    with EdgeDevice(device.folder / "edge.toml") as host:
        host.send("sample", {"number": 5})
    device.start()
    connected(device)
    eventually(lambda: numbers_in(platform) == list(range(6)), "the letter of the restored device")
    assert device.rows("SELECT value FROM meta WHERE key = 'epoch'") != old
    names = [letter.data.name for letter in letters_in(platform, "event")]
    assert "outbox.new_epoch" in names


def test_the_twin_is_taken_once_and_forged_stale_and_foreign_letters_are_reported(platform, device) -> None:
    device.start()
    connected(device)
    [taken] = post(platform, device, "config", Twin(heartbeat_s=5), slot="-", revision=7)
    eventually(
        lambda: device.rows("SELECT id FROM letters WHERE state = 'handled'", "inbox.db").count((taken,)), "the twin"
    )
    assert '"heartbeat_s":5.0' in device.rows("SELECT value FROM facts WHERE name = 'twin'", "inbox.db")[0][0]

    def sealed(kind: str, data: Message, **changes: Any) -> bytes:
        key = read_letter_key(platform.state.service_key(changes.pop("service", "registry")))
        fields: dict[str, Any] = {
            "letter_id": str(ULID()),
            "service": "registry",
            "address": device.address,
            "platform": platform.settings.platform,
            "time": datetime.now(UTC),
            "expires": datetime.now(UTC) + timedelta(hours=1),
            "generation": key.generation,
            "revision": 9,
            "slot": "-",
            "signer": key.signer,
        }
        return write_down(kind, data, **(fields | changes))

    honest = sealed("config", Twin(heartbeat_s=6))
    attacks = {
        "replayed": sealed("config", Twin(), revision=6),
        "key_not_allowed": sealed("config", Twin(), service="scheduler"),
        "wrong_recipient": sealed("config", Twin(), address=Address("home", "cam-2")),
        "wrong_platform": sealed("config", Twin(), platform=str(ULID())),
        "expired": sealed("config", Twin(), expires=datetime.now(UTC) - timedelta(seconds=1)),
        "wrong_generation": sealed("config", Twin(), generation=2**40),
        "unknown_key": sealed("config", Twin(), signer=Signer.generate()),
        "bad_envelope": b"{}",
    }
    for raw in attacks.values():
        push(platform, device.address, "config", raw)
    eventually(lambda: sorted(refusals_in(platform)) == sorted(attacks), "the device's reports", 30)
    push(platform, device.address, "config", honest)
    eventually(
        lambda: '"heartbeat_s":6.0' in device.rows("SELECT value FROM facts WHERE name = 'twin'", "inbox.db")[0][0],
        "the honest letter",
    )


def test_a_letter_of_a_part_that_does_not_act_is_handled_and_a_recall_sends_again(platform, device) -> None:
    device.start()
    connected(device)
    cancel = str(ULID())
    post(platform, device, "cancel", Cancel(task=str(ULID()), term=1), slot=cancel, service="scheduler")
    epoch = device.rows("SELECT value FROM meta WHERE key = 'epoch'")[0][0]
    with EdgeDevice(device.folder / "edge.toml") as host:
        host.send("sample", {"number": 0})
    eventually(lambda: device.rows("SELECT mark FROM lanes WHERE lane = 'normal'") == [(1,)], "the receipt")
    recalled = str(ULID())
    recall = Recall.model_validate({"epoch": epoch, "lane": "normal", "from": 1})
    post(platform, device, "recall", recall, slot=recalled)
    handled = {(recalled,), (cancel,)}
    eventually(
        lambda: handled <= set(device.rows("SELECT slot FROM letters WHERE state = 'handled'", "inbox.db")),
        "both letters to be handled",
    )
    assert '"event": "letters.recalled"' in device.log()
    assert numbers_in(platform) == [0]


def test_the_host_program_runs_the_agent_itself(platform, device) -> None:
    with EdgeDevice(device.folder / "edge.toml") as host:
        assert host.registered
        host.start_heartbeat()
        host.send("sample", {"number": 1})
        eventually(lambda: device.rows("SELECT mark FROM lanes WHERE lane = 'normal'") == [(1,)], "the receipt")
    assert numbers_in(platform) == [1]
