"""Rows of another version, or that somebody changed, in outbox and inbox: neither stops a lane, nor the agent."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ulid import ULID

from edge_runtime.household import TWIN, stored_twin
from edge_runtime.letters import mending
from edge_runtime.letters.admission import Admission
from edge_runtime.letters.database import PAGE_BYTES
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.newest import NEWEST, NewestReceipt
from edge_runtime.letters.sending import Run
from edge_runtime.settings import LaneLimits, OutboxLimits
from schemas.courier import Losses
from tests.support.outbox import Bench
from tests.unit.test_edge_inbox import NOW, letter

NO_TEXT = "CAST(x'ff80' AS TEXT)"
"""What a flipped bit makes of a text."""
LIMITS = OutboxLimits(max_bytes=1 << 20, max_letters=100, bulk=LaneLimits(max_age_s=60))


@pytest.fixture
def bench(tmp_path: Path):
    made = Bench(tmp_path, LIMITS)
    yield made
    made.outbox.close()


def tear(bench: Bench, change: str, *values: object) -> None:
    with bench.outbox.database.write("change a row") as connection:
        connection.execute(change, values)


def told(bench: Bench) -> list[tuple[str, int, int, str]]:
    """Every loss that the platform is told."""
    reports = bench.outbox.report_losses()
    found = [Losses.read(data.encode()) for name, data in bench.outbox.waiting("losses") if name in reports]
    return [(loss.lane, loss.first, loss.last, loss.reason) for each in found for loss in each.losses]


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("where", ["sequence = 'torn'", "sequence = -2", "lane = 'x'", "lane = x'ff'", "epoch = '0'"])
def test_a_letter_without_a_place_goes_to_the_end_and_its_number_is_told(bench, where, opened) -> None:
    ids = [bench.add(number) for number in range(4)]
    tear(bench, f"UPDATE letters SET {where} WHERE sequence = 2")
    if opened:
        bench.reopen()
    else:
        assert bench.outbox.mend()
    assert bench.all_above() == [(1, ids[0]), (3, ids[2]), (4, ids[3]), (5, ids[1])]
    assert told(bench) == [("normal", 2, 2, "disk")]
    assert bench.outbox.summary().waiting.letters == 5, "with the report"
    assert not bench.outbox.mend()


def test_what_waits_in_an_epoch_whose_name_is_torn_gets_a_new_one(bench) -> None:
    ids = [bench.add(number) for number in range(3)]
    tear(bench, "UPDATE meta SET value = 'torn' WHERE key = 'epoch'")
    bench.reopen()
    assert ULID.from_str(bench.outbox.epoch)
    assert bench.all_above() == list(enumerate(ids, 1))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE lanes SET issued = 'torn'",
        "UPDATE lanes SET issued = 1",
        "UPDATE lanes SET mark = 'torn'",
        "INSERT INTO lanes VALUES ('01J00000000000000000000000', 'normal', 'torn', 'torn')",
        "DELETE FROM lanes",
        "INSERT INTO lanes VALUES ((SELECT value FROM meta WHERE key = 'epoch'), 'express', 7, 0)",
        "UPDATE released SET upto = 'torn'",
        "UPDATE counters SET value = 'torn'",
        "UPDATE totals SET letters = 'torn', bytes = x'ff'",
        "UPDATE letters SET bytes = 'torn'",
        "UPDATE letters SET state = 'torn' WHERE sequence = 2",
        "UPDATE letters SET born = 'torn', receipted_at = 'torn'",
        "UPDATE meta SET value = 'torn' WHERE key = 'age_offset'",
        "DELETE FROM meta WHERE key = 'age_offset'",
    ],
)
def test_whatever_a_figure_says_letters_go_on_and_no_number_is_given_twice(bench, change) -> None:
    first = bench.add(1)
    bench.outbox.load("normal", Run(1, 1))
    bench.outbox.receipt({"normal": 1})
    ids = [bench.add(number, latest="key") for number in (2, 3)][1:]
    tear(bench, change)
    bench.reopen()
    ids.append(bench.add(4))
    assert bench.outbox.lanes() == {"normal": (4, 1)}
    assert bench.all_above(mark=1) == [(3, ids[0]), (4, ids[1])]
    assert bench.outbox.ids("sample") == sorted([first, *ids])
    summary = bench.outbox.summary()
    assert (summary.waiting.letters, summary.kept.letters) == (2, 1)
    assert bench.outbox.trim() == 0
    assert bench.losses() == [("normal", 2, 2, "superseded", 1)]
    assert not bench.outbox.mend(), "once is enough"


def test_where_no_letter_tells_of_the_numbers_given_the_next_is_above_all_that_were_sent(bench) -> None:
    bench.add(1)
    bench.outbox.load("normal", Run(1, 1))
    bench.outbox.receipt({"normal": 1})
    bench.now += 100_000
    assert bench.outbox.trim() == 1
    tear(bench, "UPDATE lanes SET issued = 'torn', mark = 'torn'")
    bench.reopen()
    own = bench.add(2)
    ((sequence, name),) = bench.all_above()
    assert (name, sequence > 1) == (own, True)


def test_a_letter_that_lost_its_id_is_given_up_like_others_that_cannot_be_signed(bench) -> None:
    ids = [bench.add(number) for number in range(2)]
    tear(bench, "UPDATE letters SET id = NULL WHERE sequence = 1")
    bench.reopen()
    (nameless,) = bench.outbox.load("normal", Run(1, 1))
    assert bench.outbox.give_up(nameless, "unsendable")
    assert bench.all_above() == [(2, ids[1])]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("last = 'torn'", [("normal", 2, 2, "unsendable"), ("normal", 3, 3, "disk")]),
        ("first = 'torn'", [("normal", 2, 3, "disk")]),
        ("lane = 'torn'", [("normal", 2, 3, "disk")]),
        ("reason = 'worn'", [("normal", 2, 3, "disk")]),
        ("epoch = 'torn'", [("normal", 2, 3, "disk")]),
    ],
)
def test_a_torn_loss_is_told_all_the_same(bench, change, expected) -> None:
    ids = [bench.add(number) for number in range(4)]
    for given_up in bench.outbox.load("normal", Run(2, 3)):
        bench.outbox.give_up(given_up, "unsendable")
    tear(bench, f"UPDATE losses SET {change}")
    bench.reopen()
    assert bench.all_above() == [(1, ids[0]), (4, ids[3])]
    assert told(bench) == expected
    assert not bench.outbox.mend(), "once is enough"


@pytest.mark.parametrize("torn", ["born = 'torn' WHERE sequence = 1", "receipted_at = 'torn'"])
def test_a_torn_age_stops_neither_expiry_nor_trimming(bench, torn) -> None:
    bench.add(1, "bulk")
    bench.add(2, "bulk")
    if torn.startswith("receipted_at"):
        bench.outbox.receipt({"bulk": 2})
    # While it runs: the work that met it is done again.
    tear(bench, f"UPDATE letters SET {torn}")
    bench.now += 100_000
    assert bench.outbox.trim() == 2


@pytest.mark.parametrize(("column", "expired"), [("id", 1), ("kind", 1), ("epoch", 0)])
def test_a_letter_that_is_torn_while_it_runs_expires_and_gives_way(bench, column, expired) -> None:
    bench.add(1, "bulk")
    tear(bench, f"UPDATE letters SET {column} = {NO_TEXT}")
    bench.now += 100_000
    assert bench.outbox.trim() == expired
    for number in range(LIMITS.max_letters):
        bench.add(number)
    tear(bench, f"UPDATE letters SET {column} = {NO_TEXT} WHERE sequence = 1 AND lane = 'normal'")
    newest = bench.add(LIMITS.max_letters)
    assert newest in dict(bench.all_above()).values()


def test_nothing_is_mended_under_letters_in_memory(bench) -> None:
    ids = [bench.add(number) for number in range(2)]
    tear(bench, "UPDATE letters SET sequence = 'torn' WHERE sequence = 2")
    with bench.full_disk():
        ids += [bench.add(number, text="x" * 20_000) for number in range(6)]
        assert bench.outbox.storage == "memory"
        assert not bench.outbox.mend()
    bench.outbox.trim()
    assert bench.outbox.storage == "disk"
    bench.reopen()
    assert sorted(name for _, name in bench.all_above()) == sorted(ids)


@pytest.mark.parametrize("column", ["id", "lane", "epoch", "kind", "data", "state", "latest"])
def test_bytes_that_are_no_text_stop_neither_the_start_nor_the_others(bench, column) -> None:
    ids = [bench.add(number) for number in range(3)]
    urgent = bench.add(3, "control")
    tear(bench, f"UPDATE letters SET {column} = {NO_TEXT} WHERE lane = 'normal' AND sequence = 2")
    bench.reopen()
    assert bench.all_above("control") == [(1, urgent)]
    held = dict(bench.all_above())
    assert (held[1], held[3]) == (ids[0], ids[2])
    bench.reopen()
    assert not bench.outbox.mend(), "once is enough"


@pytest.mark.parametrize("table", ["meta SET value", "lanes SET lane", "lanes SET issued", "losses SET epoch"])
def test_nor_do_they_elsewhere(bench, table) -> None:
    name = bench.add(1)
    bench.add(2)
    bench.outbox.give_up(bench.outbox.load("normal", Run(2, 2))[0], "unsendable")
    tear(bench, f"UPDATE {table} = {NO_TEXT}")
    bench.reopen()
    ((sequence, held),) = bench.all_above()
    assert (sequence, held) == (1, name)
    assert ULID.from_str(bench.outbox.epoch)
    bench.outbox.report_losses()


def test_an_epoch_without_letters_gets_a_name_too(bench) -> None:
    tear(bench, "UPDATE meta SET value = 'torn' WHERE key = 'epoch'")
    bench.reopen()
    assert ULID.from_str(bench.outbox.epoch)


def test_a_damaged_page_of_receipted_letters_ends_no_start(bench) -> None:
    for number in range(60):
        bench.add(number, text="x" * 300)
    bench.outbox.receipt({"normal": 40})
    with closing(sqlite3.connect(bench.path)) as connection:
        find = "SELECT pageno FROM dbstat WHERE name = 'letters' AND pagetype = 'leaf' ORDER BY path"
        leaves = [page for (page,) in connection.execute(find)]
    bench.outbox.close()
    place = (leaves[len(leaves) // 3] - 1) * PAGE_BYTES
    content = bytearray(bench.path.read_bytes())
    content[place : place + PAGE_BYTES // 2] = bytes(PAGE_BYTES // 2)
    bench.path.write_bytes(content)
    bench.open()
    assert bench.outbox.storage == "disk"
    assert bench.sequences(mark=40) == list(range(41, 61))
    assert bench.add(60)


def test_what_another_process_adds_between_two_looks_is_not_torn(bench, monkeypatch) -> None:
    looks = iter([True])
    really = mending._torn
    monkeypatch.setattr(mending, "_torn", lambda connection: next(looks, None) or really(connection))
    bench.add(1)
    assert not bench.outbox.mend()


def test_only_who_sends_looks_through_the_whole_file_at_its_opening(bench, monkeypatch) -> None:
    looked = []
    monkeypatch.setattr(mending, "_torn", lambda _: looked.append(1))
    bench.another().close()
    assert looked == []
    bench.reopen()
    assert looked


@pytest.fixture
def inbox(tmp_path: Path):
    made = Inbox(tmp_path / "inbox.db", NOW.timestamp)
    yield made
    made.close()


def torn(inbox: Inbox, change: str) -> Inbox:
    """The inbox of the next start."""
    with inbox._database.write("change a row") as connection:
        connection.execute(change)
    path = inbox._database.path
    inbox.close()
    return Inbox(path, NOW.timestamp)


@pytest.mark.parametrize("change", ["time = 'torn'", "time = 1e300", "generation = 'torn'"])
def test_a_torn_floor_is_dropped_and_the_others_hold(inbox, change) -> None:
    for key in ("a", "b"):
        inbox.prove(key, 1, NOW)
    again = torn(inbox, f"UPDATE floors SET {change} WHERE keyid = 'a'")
    assert again.time_floor() == NOW
    assert again.time_floors()["b"] == NOW


@pytest.mark.parametrize("column", ["generation", "revision"])
def test_a_torn_order_is_found_again_by_the_letters_of_its_slot(inbox, column) -> None:
    old, new = letter(4), letter(5)
    for each in (old, new):
        inbox.take(each, "config", b"{}", "key")
    again = torn(inbox, f"UPDATE orders SET {column} = 'torn'")
    assert again.judge(letter(4), "config") is Admission.REPLAYED
    assert again.judge(new, "config") is Admission.KNOWN
    assert again.judge(letter(6), "config") is Admission.NEW


def test_a_torn_state_leaves_a_letter_to_be_handled(inbox) -> None:
    taken = letter(1)
    inbox.take(taken, "config", b"{}", "key")
    again = torn(inbox, "UPDATE letters SET state = 'torn'")
    assert [held.id for held in again.held()] == [taken.id]


def test_hello_names_only_what_is_an_id(inbox) -> None:
    good, bad = letter(1), letter(2)
    for each in (good, bad):
        inbox.take(each, "config", b"{}", "key")
    again = torn(inbox, f"UPDATE letters SET id = 'torn' WHERE id = '{bad.id}'")
    assert again.newest_ids(64) == [good.id]


@pytest.mark.parametrize("text", ["torn", "[1]", "null", '{"heartbeat_s": []}', "[1e999, 1]"])
def test_a_torn_fact_counts_as_none(inbox, text) -> None:
    inbox.remember(TWIN, text)
    inbox.remember(NEWEST, text)
    assert stored_twin(inbox) is None
    newest: Any = NewestReceipt(inbox)
    assert newest._written() == (-1, -1)
