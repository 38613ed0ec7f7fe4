from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ulid import ULID

from edge_runtime.errors import OutboxError
from edge_runtime.identity import Identity
from edge_runtime.letters.dispatch import Dispatcher
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.mailroom import REPORTS_PER_MINUTE, Desk, Mailroom
from edge_runtime.trust.keyring import Keyring
from edge_runtime.trust.record import TrustRecord, write_record
from schemas.depot import TrustState
from schemas.envelope import Signer
from schemas.events import DownLetter, Message
from schemas.ids import Address
from schemas.letters import write_down
from schemas.registry import Twin
from schemas.scheduler import Cancel
from schemas.trust import SIGNED_KINDS, ServiceKey, ServicesDocument
from tests.unit.test_edge_inbox import NOW

PLATFORM = "01J00000000000000000000000"
ME = Address("home", "cam-1")


class Notes:
    """A handler that writes down what it saw, and waits where it is told to."""

    kinds = frozenset({"config", "cancel"})

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def handle(self, letter: DownLetter[Any]) -> None:
        await self.gate.wait()
        self.seen.append(letter.id)
        if self.error is not None:
            raise self.error


class World:
    def __init__(self, folder) -> None:
        self.folder = folder
        self.keys = {service: Signer.generate() for service in SIGNED_KINDS}
        self.publish(self.keys)
        self.inbox = Inbox(folder / "inbox.db", NOW.timestamp)
        self.keyring = Keyring(folder / "trust")
        self.notes = Notes()
        self.failed: list[Exception] = []
        self.dispatcher = Dispatcher(self.inbox, lambda letter, kind, error: self.failed.append(error))
        self.dispatcher.register([self.notes])
        self.got: list[str] = []
        self.reports: list[Any] = []
        self.asked = 0
        identity = Identity(
            fleet=ME.fleet,
            device=ME.device,
            platform=PLATFORM,
            url="mqtts://127.0.0.1:1",
            root_sha256="0" * 64,
            letter_seed=base64.b64encode(bytes(32)).decode(),
            seal_seed=base64.b64encode(bytes(32)).decode(),
        )
        self.mailroom = Mailroom(
            Desk(
                inbox=self.inbox,
                keyring=self.keyring,
                dispatcher=self.dispatcher,
                identity=lambda: identity,
                now=lambda: NOW,
                got=self.got.append,
                report=self.reports.append,
                ask_trust=self._ask,
            )
        )

    def _ask(self) -> None:
        self.asked += 1

    def publish(self, keys: dict[str, Signer]) -> None:
        listed = [
            ServiceKey(
                keyid=key.keyid,
                public=base64.b64encode(key.public_key).decode(),
                service=service,
                kinds=list(SIGNED_KINDS[service]),
                generation=1,
            )
            for service, key in keys.items()
        ]
        write_record(
            self.folder / "trust",
            TrustRecord(
                root_sha256="0" * 64,
                accepted=TrustState(root=1),
                cache="cache-1",
                files={},
                services=ServicesDocument(platform=PLATFORM, keys=listed),
                floors={},
                refreshed=NOW,
            ),
        )

    def letter(self, kind: str = "config", data: Message | None = None, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "letter_id": str(ULID()),
            "service": "registry",
            "address": ME,
            "platform": PLATFORM,
            "time": NOW,
            "expires": NOW + timedelta(hours=1),
            "generation": 1,
            "revision": 5,
            "slot": "-",
            "signer": self.keys["registry"],
        }
        return write_down(kind, data or Twin(), **(fields | changes))

    def reasons(self) -> list[str]:
        return [report.reason for report in self.reports]

    async def settle(self) -> None:
        while self.dispatcher._tasks:
            await asyncio.gather(*self.dispatcher._tasks)


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    yield made
    await made.dispatcher.close()
    made.inbox.close()


async def test_an_honest_letter_is_stored_confirmed_and_handled_once(world) -> None:
    raw = world.letter(letter_id="01J00000000000000000000001")
    world.mailroom.receive("config", raw)
    world.mailroom.receive("config", raw)
    await world.settle()
    world.mailroom.receive("config", raw)
    await world.settle()
    assert world.notes.seen == ["01J00000000000000000000001"]
    assert world.got == ["01J00000000000000000000001"] * 3
    assert world.inbox.held() == []
    assert world.reports == []


@pytest.mark.parametrize(
    ("changes", "reason", "confirmed"),
    [
        ({"platform": str(ULID())}, "wrong_platform", True),
        ({"address": Address("home", "cam-2")}, "wrong_recipient", True),
        ({"expires": NOW - timedelta(seconds=1)}, "expired", True),
        ({"generation": 2**50}, "wrong_generation", True),
    ],
)
async def test_a_letter_that_may_not_be_acted_on_is_reported_with_its_reason(world, changes, reason, confirmed) -> None:
    world.mailroom.receive("config", world.letter(**changes))
    await world.settle()
    assert world.notes.seen == []
    assert world.reasons() == [reason]
    assert bool(world.got) is confirmed


async def test_another_services_key_is_refused_and_the_report_names_the_letter(world) -> None:
    letter_id = str(ULID())
    raw = world.letter(letter_id=letter_id, signer=world.keys["scheduler"])
    for _ in range(3):
        world.mailroom.receive("config", raw)
    (report,) = world.reports
    assert (report.reason, report.details) == ("key_not_allowed", {"letter": letter_id, "kind": "config"})
    assert report.severity == "high"
    assert set(world.got) == {letter_id}


async def test_a_broken_signature_is_not_confirmed_since_a_good_copy_may_come(world) -> None:
    raw = world.letter()
    middle = raw.index(b'"sig":"') + 9
    flipped = raw[:middle] + (b"A" if raw[middle : middle + 1] != b"A" else b"B") + raw[middle + 1 :]
    world.mailroom.receive("config", flipped)
    assert world.reasons() == ["bad_signature"]
    assert world.got == []
    world.mailroom.receive("config", raw)
    await world.settle()
    assert len(world.notes.seen) == 1


async def test_an_older_revision_is_a_replay_and_a_slot_of_its_own_is_not(world) -> None:
    world.mailroom.receive("config", world.letter(revision=5))
    world.mailroom.receive("config", world.letter(revision=4))
    assert world.reasons() == ["replayed"]
    for revision in (9, 2):
        own = str(ULID())
        cancel = Cancel(task=str(ULID()))
        fields = {"letter_id": own, "slot": own, "revision": revision, "signer": world.keys["scheduler"]}
        world.mailroom.receive("cancel", world.letter("cancel", cancel, **fields))
    await world.settle()
    assert len(world.notes.seen) == 3


async def test_a_letter_by_a_new_key_waits_for_trust(world) -> None:
    newer = Signer.generate()
    raw = world.letter(signer=newer)
    world.mailroom.receive("config", raw)
    assert (world.asked, world.got, world.reports) == (1, [], [])
    world.publish(world.keys | {"registry": newer})
    world.keyring.reload()
    world.mailroom.trust_changed()
    await world.settle()
    assert len(world.notes.seen) == 1
    assert len(world.got) == 1


async def test_a_letter_by_nobody_is_refused_once_trust_was_asked(world) -> None:
    raw = world.letter(signer=Signer.generate())
    world.mailroom.receive("config", raw)
    world.mailroom.trust_changed()
    assert world.reasons() == ["unknown_key"]
    assert world.got == []


async def test_what_waits_for_keys_is_bounded(world) -> None:
    for _ in range(40):
        world.mailroom.receive("config", world.letter(signer=Signer.generate()))
    world.mailroom.trust_changed()
    assert len(world.reports) == 16


async def test_a_flood_of_forgeries_is_reported_in_part_and_counted_whole(world) -> None:
    for _ in range(REPORTS_PER_MINUTE + 20):
        world.mailroom.receive("config", world.letter(signer=world.keys["ota"]))
    assert len(world.reports) == REPORTS_PER_MINUTE
    assert world.mailroom.unreported == 20
    assert world.mailroom.refusals == {"key_not_allowed": REPORTS_PER_MINUTE + 20}


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b"[]", b"x" * 70_000])
async def test_rubbish_is_refused_and_nothing_stops(world, raw) -> None:
    world.mailroom.receive("config", raw)
    assert len(world.reports) == 1
    world.mailroom.receive("config", world.letter())
    await world.settle()
    assert len(world.notes.seen) == 1


async def test_one_slot_is_served_in_order_and_others_at_the_same_time(world) -> None:
    world.notes.gate.clear()
    first, second = str(ULID()), str(ULID())
    world.mailroom.receive("config", world.letter(letter_id=first, revision=1))
    world.mailroom.receive("config", world.letter(letter_id=second, revision=2))
    assert len(world.dispatcher._tasks) == 1
    own = str(ULID())
    world.mailroom.receive(
        "cancel", world.letter("cancel", Cancel(job="a"), letter_id=own, slot=own, signer=world.keys["scheduler"])
    )
    assert len(world.dispatcher._tasks) == 2
    world.notes.gate.set()
    await world.settle()
    assert world.notes.seen.index(first) < world.notes.seen.index(second)


async def test_a_handler_that_fails_is_told_and_the_letter_counts_as_handled(world) -> None:
    world.notes.error = RuntimeError("broken")
    world.mailroom.receive("config", world.letter())
    await world.settle()
    assert str(world.failed[0]) == "broken"
    assert world.inbox.held() == []


async def test_what_was_not_handled_is_dispatched_again_after_a_restart(world, tmp_path) -> None:
    world.notes.gate.clear()
    world.mailroom.receive("config", world.letter())
    await world.dispatcher.close()
    assert len(world.inbox.held()) == 1
    again = Dispatcher(world.inbox, lambda *_: None)
    again.register([world.notes])
    world.notes.gate.set()
    world.mailroom = Mailroom(
        Desk(
            inbox=world.inbox,
            keyring=world.keyring,
            dispatcher=again,
            identity=world.mailroom._desk.identity,
            now=lambda: datetime.now(UTC),
            got=world.got.append,
            report=world.reports.append,
            ask_trust=lambda: None,
        )
    )
    world.mailroom.resume()
    await asyncio.gather(*again._tasks)
    assert len(world.notes.seen) == 1


async def test_a_full_disk_confirms_nothing_and_the_next_copy_is_taken(world, monkeypatch) -> None:
    raw = world.letter()

    def full(*_: Any) -> None:
        raise OutboxError("store a letter down: the disk is full", reason="disk_full")

    with monkeypatch.context() as patch:
        patch.setattr(world.inbox, "take", full)
        world.mailroom.receive("config", raw)
    assert world.got == []
    assert "disk is full" in world.mailroom.problem
    world.mailroom.receive("config", raw)
    assert world.mailroom.problem is None
    assert len(world.got) == 1


async def waiting_letters(world, number: int) -> list[str]:
    """So many that an end left unhandled, each of its own slot; their ids as they came."""
    world.notes.gate.clear()
    for _ in range(number):
        own, signer = str(ULID()), world.keys["scheduler"]
        raw = world.letter("cancel", Cancel(job="a"), letter_id=own, slot=own, service="scheduler", signer=signer)
        world.mailroom.receive("cancel", raw)
    await world.dispatcher.close()
    world.notes.gate.set()
    return [held.id for held in world.inbox.held()]


async def resume(world) -> None:
    """As the next start does."""
    again = Dispatcher(world.inbox, lambda *_: None)
    again.register([world.notes])
    world.mailroom = Mailroom(replace(world.mailroom._desk, dispatcher=again))
    world.mailroom.resume()
    await asyncio.gather(*again._tasks)


@pytest.mark.parametrize("envelope", [None, "text", b"\xff\x00", 7])
async def test_a_held_letter_that_is_torn_is_refused_by_name_and_the_others_go_on(world, envelope) -> None:
    ids = await waiting_letters(world, 3)
    with world.inbox._database.write("change a letter") as connection:
        connection.execute("UPDATE letters SET envelope = ? WHERE id = ?", (envelope, ids[1]))
    await resume(world)
    assert sorted(world.notes.seen) == sorted([ids[0], ids[2]])
    assert [report.details["letter"] for report in world.reports] == [ids[1]]
    assert world.inbox.held() == []


async def test_a_held_letter_whose_row_names_another_id_is_handled_once(world) -> None:
    ids = await waiting_letters(world, 2)
    with world.inbox._database.write("change a letter") as connection:
        connection.execute("UPDATE letters SET id = 'torn' WHERE id = ?", (ids[0],))
    await resume(world)
    assert sorted(world.notes.seen) == sorted(ids)
    assert world.inbox.held() == []
    assert sorted(world.inbox.newest_ids(9)) == sorted(ids)


@pytest.mark.parametrize("broken", ["handled", "held"])
async def test_a_disk_that_takes_nothing_does_not_end_the_start(world, monkeypatch, broken) -> None:
    ids = await waiting_letters(world, 2)
    with world.inbox._database.write("change a letter") as connection:
        connection.execute("UPDATE letters SET envelope = '{}' WHERE id = ?", (ids[0],))

    def full(*_: Any) -> None:
        raise OutboxError("note a handled letter: the disk is full", reason="disk_full")

    monkeypatch.setattr(world.inbox, broken, full)
    await resume(world)
    assert world.notes.seen == ([] if broken == "held" else [ids[1]])
    monkeypatch.undo()
    assert [held.id for held in world.inbox.held()] == ids, "none counts as handled"


async def test_a_held_letter_that_fails_as_nobody_expected_stops_no_other_and_stays(world, monkeypatch) -> None:
    ids = await waiting_letters(world, 2)
    verify, asked = world.keyring.verify, []

    def broken(*of: Any) -> ServiceKey:
        asked.append(of)
        if len(asked) == 1:
            raise KeyError("torn")
        return verify(*of)

    monkeypatch.setattr(world.keyring, "verify", broken)
    await resume(world)
    assert world.notes.seen == [ids[1]]
    assert [held.id for held in world.inbox.held()] == [ids[0]]
