from __future__ import annotations

import json
import multiprocessing
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.errors import OutboxError
from edge_runtime.letters.outbox import Entry, Outbox
from edge_runtime.letters.sending import Run
from edge_runtime.settings import LaneLimits, OutboxLimits
from schemas.events import Untyped
from schemas.registry import EventReport
from tests.support.outbox import Bench


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.outbox.close()


def test_a_letter_survives_a_restart_with_its_place(bench) -> None:
    epoch, letter_id = bench.outbox.epoch, bench.add(7)
    bench.reopen()
    (letter,) = bench.outbox.load("normal", Run(1, 1))
    assert (letter.id, letter.epoch, letter.sequence, letter.floor) == (letter_id, epoch, 1, 1)
    assert json.loads(letter.data) == {"number": 7}
    assert bench.path.stat().st_mode & 0o777 == 0o600


def deep(levels: int) -> object:
    return [deep(levels - 1)] if levels else 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            {"temp_c": [1.0, float("nan")]},
            r"data\.temp_c\.1 is nan, which JSON has no number for; leave it out or send null",
        ),
        ({"a": {"b": -float("inf")}, "c": None}, r"data\.a\.b is -inf"),
        ({"mean": np.float64("inf")}, r"data\.mean is inf"),
        ({"mean": np.float32(1)}, "send plain numbers, texts, lists and mappings"),
        ({"text": "\ud800"}, "surrogates not allowed"),
        ({"deep": deep(199)}, "recursion limit"),
        ({"long": 10**4_301}, "number out of range"),
    ],
)
def test_what_json_cannot_carry_is_refused(bench, data, reason) -> None:
    with pytest.raises(OutboxError, match=f"^store a letter sample: .*{reason}") as caught:
        bench.outbox.add_many([Entry("sample", Untyped(), "normal"), Entry("sample", Untyped(**data), "normal")])
    assert caught.value.reason == "malformed"
    assert bench.outbox.summary().waiting.letters == 0
    bench.add(none=None, null="null", deep=deep(190), long=10**4_000)
    assert bench.sequences() == [1]


def test_lanes_count_for_themselves(bench) -> None:
    bench.add()
    bench.add()
    bench.add(lane="control")
    assert bench.outbox.lanes() == {"normal": (2, 0), "control": (1, 0)}


def test_an_id_that_is_known_is_not_stored_again(bench) -> None:
    first = bench.outbox.add("sample", Untyped(), "normal", "01J00000000000000000000000")
    assert bench.outbox.add("sample", Untyped(), "normal", first) == first
    assert bench.sequences() == [1]


def test_a_receipt_keeps_letters_for_a_day(bench) -> None:
    for number in range(3):
        bench.add(number)
    bench.outbox.receipt({"normal": 2})
    assert bench.outbox.summary().waiting.letters == 1
    assert bench.outbox.trim() == 0
    bench.now += 24 * 3_600
    assert bench.outbox.trim() == 2
    assert bench.sequences() == [3]
    assert bench.outbox.load("normal", Run(3, 3))[0].floor == 3


def test_a_mark_that_goes_backwards_makes_letters_wait_again(bench) -> None:
    for number in range(4):
        bench.add(number)
    bench.outbox.receipt({"normal": 4})
    assert bench.outbox.summary().waiting.letters == 0
    bench.outbox.receipt({"normal": 1})
    assert bench.outbox.summary().waiting.letters == 3
    assert bench.sequences(mark=1) == [2, 3, 4]
    assert bench.outbox.load("normal", Run(2, 4))[0].floor == 1


def test_a_full_outbox_gives_up_the_oldest_and_says_so(bench) -> None:
    for number in range(95):
        bench.add(number)
    assert bench.outbox.summary().dropped == 5
    assert bench.sequences()[0] == 6
    assert bench.outbox.load("normal", Run(6, 6))[0].floor == 6
    assert bench.losses() == [("normal", 1, 5, "evicted", 5)]


def test_eviction_behind_receipted_letters_leaves_a_gap_that_the_floor_jumps(bench) -> None:
    for number in range(10):
        bench.add(number)
    bench.outbox.receipt({"normal": 4})
    for number in range(90):
        bench.add(number)
    run = bench.outbox.run_above("normal", 4)
    assert run == Run(11, 100)
    assert bench.outbox.load("normal", run)[0].floor == 11


def test_bulk_gives_way_to_normal_and_not_the_other_way_round(bench) -> None:
    for number in range(90):
        bench.add(number, lane="bulk")
    bench.add(1)
    assert bench.sequences("bulk")[0] == 2
    for number in range(89):
        bench.add(number)
    with pytest.raises(OutboxError, match="full of more urgent") as raised:
        bench.add(1, lane="bulk")
    assert raised.value.reason == "outbox_full"
    assert bench.outbox.summary().refused == 1


def test_an_oversized_letter_is_refused_at_once(bench) -> None:
    with pytest.raises(OutboxError, match="by digest"):
        bench.add(text="x" * 60_000)


def test_a_new_epoch_renumbers_what_waits_and_keeps_what_was_receipted(bench) -> None:
    ids = [bench.add(number) for number in range(5)]
    bench.outbox.receipt({"normal": 2})
    old = bench.outbox.epoch
    new = bench.outbox.renew_epoch()
    assert new > old
    letters = bench.outbox.load("normal", Run(1, 3))
    assert [(x.sequence, x.id) for x in letters] == list(enumerate(ids[2:], 1))
    assert bench.rows("SELECT epoch, first, last, reason, letters FROM losses") == [(old, 3, 5, "renumbered", 0)]
    bench.add()
    assert bench.sequences() == [1, 2, 3, 4]


def test_a_new_epoch_can_put_one_letter_first(bench) -> None:
    bench.outbox.add("event", EventReport(name="a", message="b", severity="high"), "control")
    enrol = bench.outbox.add("sample", Untyped(), "control")
    bench.outbox.add("event", EventReport(name="c", message="d", severity="high"), "control")
    assert bench.outbox.database.read("SELECT sequence FROM letters WHERE id = ?", (enrol,))[0][0] == 2
    bench.outbox.renew_epoch(first=enrol)
    assert bench.outbox.load("control", Run(1, 3))[0].id == enrol
    assert not bench.outbox.stands_behind_others(enrol)


def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"no database" * 1_000)
    with pytest.raises(OutboxError, match="damaged") as raised:
        Bench(tmp_path)
    assert raised.value.reason == "damaged"


def _add_many(path: Path) -> None:
    outbox = Outbox(path, OutboxLimits(), lambda: 1.0)
    for number in range(20):
        outbox.add("sample", Untyped(number=number), "normal")
    outbox.close()


def test_several_processes_share_one_ledger(bench) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_many, args=(bench.path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert bench.sequences() == list(range(1, 41))


def test_many_letters_are_stored_in_one_transaction_or_not_at_all(bench) -> None:
    ids = bench.outbox.add_many([Entry("sample", Untyped(number=n), "normal") for n in range(20)])
    assert bench.all_above() == list(enumerate(ids, 1))
    big = Entry("sample", Untyped(text="x" * 60_000), "normal")
    with pytest.raises(OutboxError, match="by digest"):
        bench.outbox.add_many([Entry("sample", Untyped(), "normal"), big])
    assert bench.sequences() == list(range(1, 21))
    assert bench.outbox.summary().refused == 2


def test_each_lane_has_bounds_of_its_own(tmp_path) -> None:
    limits = OutboxLimits(max_letters=1_000, normal=LaneLimits(max_letters=100))
    bench = Bench(tmp_path, limits)
    for number in range(103):
        bench.add(number)
        bench.add(number, lane="bulk")
    assert bench.losses() == [("normal", 1, 3, "evicted", 3)]
    assert bench.sequences("bulk") == list(range(1, 104))
    bench.outbox.close()


def test_a_letter_that_waited_too_long_is_given_up(tmp_path) -> None:
    bench = Bench(tmp_path, OutboxLimits(bulk=LaneLimits(max_age_s=3_600)))
    old = bench.add(1, lane="bulk")
    bench.add(2)
    bench.now += 1_800
    bench.add(3, lane="bulk")
    bench.now += 1_800
    assert bench.outbox.trim() == 1
    assert bench.losses() == [("bulk", 1, 1, "expired", 1)]
    assert bench.rows("SELECT id FROM lost") == [(old,)]
    assert bench.sequences("bulk") == [2]
    assert bench.outbox.load("bulk", Run(2, 2))[0].floor == 2
    assert bench.sequences() == [1], "other lanes wait for as long as it takes"
    bench.outbox.close()


def test_a_clock_that_jumps_makes_no_letter_old(tmp_path) -> None:
    wall, seconds = [0.0], [50.0]
    limits = OutboxLimits(bulk=LaneLimits(max_age_s=3_600))
    outbox = Outbox(tmp_path / "a.db", limits, lambda: wall[0], lambda: ("boot", seconds[0]))
    outbox.add("sample", Untyped(), "bulk")
    wall[0] = 1_800_000_000.0
    seconds[0] += 3_599
    assert outbox.trim() == 0
    seconds[0] += 1
    assert outbox.trim() == 1
    outbox.close()


def test_an_age_goes_on_after_a_restart_of_the_device(tmp_path) -> None:
    bench = Bench(tmp_path, OutboxLimits(bulk=LaneLimits(max_age_s=3_600)))
    bench.add(1, lane="bulk")
    bench.now += 3_000
    bench.add(2, lane="bulk")
    bench.boot, bench.now = "second", 10.0  # what is off does not age
    bench.reopen()
    bench.now += 599
    assert bench.outbox.trim() == 0
    bench.now += 1
    assert bench.outbox.trim() == 1
    assert bench.sequences("bulk") == [2]
    bench.outbox.close()


def test_a_file_of_the_first_version_is_taken_over(tmp_path) -> None:
    path = tmp_path / "outbox.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST_VERSION)
    connection.close()
    bench = Bench(tmp_path)
    assert bench.outbox.epoch == "01J00000000000000000000000"
    bench.add()
    assert bench.sequences() == [2, 3, 4]
    assert bench.outbox.report_losses()
    assert bench.outbox.summary().waiting.letters == 4
    bench.outbox.close()


FIRST_VERSION = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE lanes (epoch TEXT NOT NULL, lane TEXT NOT NULL, issued INTEGER NOT NULL, mark INTEGER NOT NULL,
    PRIMARY KEY (epoch, lane)) WITHOUT ROWID;
CREATE TABLE letters (id TEXT PRIMARY KEY, epoch TEXT NOT NULL, lane TEXT NOT NULL, sequence INTEGER NOT NULL,
    kind TEXT NOT NULL, data TEXT NOT NULL, time REAL NOT NULL, bytes INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', receipted_at REAL, UNIQUE (epoch, lane, sequence));
CREATE INDEX letters_waiting ON letters (lane, sequence) WHERE state = 'waiting';
CREATE TABLE losses (epoch TEXT NOT NULL, lane TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    reason TEXT NOT NULL, letters INTEGER NOT NULL, PRIMARY KEY (epoch, lane, first)) WITHOUT ROWID;
CREATE TABLE totals (lane TEXT NOT NULL, state TEXT NOT NULL, letters INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (lane, state)) WITHOUT ROWID;
INSERT INTO meta VALUES ('epoch', '01J00000000000000000000000');
INSERT INTO lanes VALUES ('01J00000000000000000000000', 'normal', 3, 0);
INSERT INTO letters VALUES ('01J00000000000000000000002', '01J00000000000000000000000', 'normal', 2, 'sample', '{}',
    1.0, 258, 'waiting', NULL), ('01J00000000000000000000003', '01J00000000000000000000000', 'normal', 3, 'sample',
    '{}', 1.0, 258, 'waiting', NULL);
INSERT INTO losses VALUES ('01J00000000000000000000000', 'normal', 1, 1, 'evicted', 1);
INSERT INTO totals VALUES ('normal', 'waiting', 2, 516);
"""
