"""A device that never has a route to the broker talks with the platform through a neighbour that later gets one.

Everything is real: agents as processes in network namespaces, mDNS between them, the platform at the end of a cable
that is plugged in late. `ann` is on the quay only; `bob` is on the quay, and some day in the harbour's network too.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats.js.errors import NotFoundError

from causeway.platform.init import InitOptions
from edge_runtime.sdk import EdgeDevice
from schemas.envelope import parse
from schemas.letters import read_up
from schemas.registry import Twin
from schemas.topics import in_subject
from services.kit.bus import Bus
from tests.support.courier_world import post
from tests.support.edge import EdgeProcess
from tests.support.netns import Machine, Net, Switch, unavailable
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import in_bus

reason = unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=reason or "")
LETTERS, MORE = 30, 40
NEIGHBOURS = "[neighbours]\nenabled = true\nmeet_s = 2.0\n"


@dataclass
class Quay:
    """The scene."""

    live: LivePlatform
    harbour: Switch
    ann: EdgeProcess
    bob: EdgeProcess
    ann_at: Machine
    bob_at: Machine


@pytest.fixture
def quay(tmp_path: Path) -> Iterator[Quay]:
    with ExitStack() as stack:
        net = stack.enter_context(Net())
        harbour, quayside = net.switch("harbour"), net.switch("quay")
        office = harbour.plug(net.here)
        live = LivePlatform.start(tmp_path / "state", InitOptions(host=office.address, free_ports=True))
        stack.callback(live.stop)
        live.start_services("depot", "registry", "courier")
        machines = {name: net.machine(name) for name in ("ann", "bob")}
        devices = {}
        for name, machine in machines.items():
            device = devices[name] = EdgeProcess.make(tmp_path / name, name, NEIGHBOURS)
            device.admit(live)  # in the office, before it is carried out to where it will be
            quayside.plug(machine)
            device.prefix = machine.prefix
        yield Quay(live, harbour, devices["ann"], devices["bob"], machines["ann"], machines["bob"])


def numbers_in(live: LivePlatform, device: EdgeProcess) -> list[int]:
    """What IN holds of a device's samples, in its order."""

    async def read(bus: Bus) -> list[int]:
        state = (await bus.js.stream_info("IN")).state
        found = []
        for sequence in range(state.first_seq, state.last_seq + 1):
            try:
                message = await bus.js.get_msg("IN", sequence)
            except NotFoundError:
                continue
            if message.subject == in_subject("sample", device.address):
                found.append(read_up(parse(message.data).body, "sample").data.number)
        return found

    return in_bus(live, "auditor", read)


def mailbox_of(live: LivePlatform, device: EdgeProcess) -> int:
    async def count(bus: Bus) -> int:
        state = await bus.js.stream_info(
            "OUT", subjects_filter=f"cw.out.{device.address.fleet}.{device.address.device}.>"
        )
        return len(state.state.subjects or {})

    return in_bus(live, "auditor", count)


def mark(device: EdgeProcess) -> int:
    rows = device.rows("SELECT mark FROM lanes WHERE lane = 'normal'")
    return rows[0][0] if rows else 0


def carried(device: EdgeProcess) -> int:
    """Fragments of others that it holds, on its disk."""
    try:
        return device.rows("SELECT count(*) FROM fragments WHERE own = 0", "carriers.db")[0][0]
    except sqlite3.OperationalError as error:
        # The agent has just begun, and made no tables yet.
        assert "no such table" in str(error) or "unable to open" in str(error), error  # noqa: PT017
        return 0


def write(device: EdgeProcess, numbers: range) -> None:
    """What a program on the device has to say."""
    with EdgeDevice(device.folder / "edge.toml") as program:
        for number in numbers:
            program.send("sample", {"number": number})
        # An urgent one does not wait for long whether the link comes back, and takes the others along.
        program.send("event", {"name": "quay.flooded", "severity": "high", "message": "water at the quay"})


def test_letters_receipts_and_mail_travel_through_a_neighbour(quay: Quay) -> None:
    live, ann, bob = quay.live, quay.ann, quay.bob
    write(ann, range(LETTERS))
    [mail] = post(live, ann, "config", Twin(heartbeat_s=77), slot="-", revision=1_000)
    ann.start()
    bob.start()
    try:
        route = subprocess.run(
            [*quay.ann_at.prefix, "ip", "route", "get", live.settings.bus.host], capture_output=True, check=False
        )
        assert route.returncode != 0, "there is no way from ann to the platform"
        eventually(lambda: carried(bob), "bob to carry what ann wrote", 30)
        assert numbers_in(live, ann) == []
        assert not bob.status().get("connected")

        cable = quay.harbour.plug(quay.bob_at)
        eventually(lambda: bob.status().get("connected"), "bob to get a link", 45)
        eventually(lambda: numbers_in(live, ann) == list(range(LETTERS)), "ann's letters in IN", 30)
        eventually(lambda: mark(ann) == LETTERS, "the receipts to come back to ann", 30)
        eventually(
            lambda: (mail,) in ann.rows("SELECT id FROM letters WHERE state = 'handled'", "inbox.db"),
            "the mail to reach ann",
            30,
        )

        # The next ones are with bob when he dies.
        eventually(lambda: not carried(bob), "bob to let go of what has arrived", 30)
        cable.cut()
        write(ann, range(LETTERS, MORE))
        eventually(lambda: carried(bob), "bob to carry the later letters", 30)
        bob.kill()
        assert numbers_in(live, ann) == list(range(LETTERS))
        cable.restore()
        bob.start()
        eventually(lambda: mark(ann) == MORE, "later letters and their receipts", 45)
        assert numbers_in(live, ann) == list(range(MORE)), "each once, in order"
        eventually(lambda: mailbox_of(live, ann) == 0, "ann's got to empty her mailbox", 30)
        eventually(lambda: not carried(bob), "bob to let go of what has arrived", 30)
        assert not ann.status().get("connected"), "ann never had a link of her own"
        assert "link.up" not in ann.log()
        assert ann.stop() == 0
        assert bob.stop() == 0
    finally:
        for device in (ann, bob):
            if device.process is not None:
                device.kill()
