from __future__ import annotations

import contextlib
import json
import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.errors import OutboxError
from edge_runtime.letters.outbox import Outbox
from edge_runtime.letters.sending import Run
from edge_runtime.settings import OutboxLimits
from schemas.events import Untyped
from schemas.registry import EventReport

LIMITS = OutboxLimits(max_bytes=1 << 20, max_letters=100)


class Bench:
    def __init__(self, folder: Path, limits: OutboxLimits = LIMITS) -> None:
        self.now = 1_000_000.0
        self.path = folder / "outbox.db"
        self.limits = limits
        self.open()

    def open(self) -> None:
        self.outbox = Outbox(self.path, self.limits, lambda: self.now)

    def reopen(self) -> None:
        self.outbox.close()
        self.open()

    def add(self, number: int = 0, lane: str = "normal", **more: object) -> str:
        return self.outbox.add("sample", Untyped(number=number, **more), lane)

    def sequences(self, lane: str = "normal", mark: int = 0) -> list[int]:
        run = self.outbox.run_above(lane, mark)
        return [letter.sequence for letter in self.outbox.load(lane, run)] if run else []


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
    rows = bench.outbox.database.read("SELECT first, last, reason, letters FROM losses")
    assert [tuple(row) for row in rows] == [(1, 5, "evicted", 5)]


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
    lost = bench.outbox.database.read("SELECT epoch, first, last, reason, letters FROM losses")
    assert [tuple(row) for row in lost] == [(old, 3, 5, "renumbered", 0)]
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


def fill(bench: Bench) -> None:
    for _ in range(50):
        bench.add(text="x" * 40_000)


def test_a_full_disk_refuses_the_letter_says_what_to_do_and_mends(bench) -> None:
    bench.add()
    bench.outbox.database.limit_pages(bench.outbox.database.pages())
    with pytest.raises(OutboxError, match="disk is full; free some space") as raised:
        fill(bench)
    assert raised.value.reason == "disk_full"
    assert bench.outbox.summary().refused == 1
    before = bench.sequences()
    bench.outbox.database.limit_pages(1_000_000)
    bench.add()
    assert bench.sequences() == [*before, before[-1] + 1]


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


step = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(["control", "normal", "bulk"])),
    st.tuples(st.just("receipt"), st.integers(0, 100)),
    st.tuples(st.just("back"), st.integers(0, 100)),
    st.tuples(st.just("trim"), st.sampled_from([1, 400, 90_000])),
    st.tuples(st.just("reopen"), st.none()),
    st.tuples(st.just("epoch"), st.none()),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(step, max_size=40))
def test_whatever_happens_every_sequence_is_here_receipted_or_accounted_for(tmp_path_factory, steps) -> None:
    bench = Bench(tmp_path_factory.mktemp("outbox"), OutboxLimits(max_bytes=1 << 20, max_letters=100))
    bench.outbox._bound = bench.outbox._bound.share(0.12)
    marks: dict[tuple[str, str], int] = {}
    try:
        for action, value in steps:
            epoch, lanes = bench.outbox.epoch, bench.outbox.lanes()
            if action == "add":
                with contextlib.suppress(OutboxError):  # full of more urgent ones
                    bench.add(lane=value)
            elif action in {"receipt", "back"}:
                new = {lane: issued * value // 100 for lane, (issued, _) in lanes.items()}
                bench.outbox.receipt(new)
                for lane, mark in new.items():
                    marks[epoch, lane] = max(mark, marks.get((epoch, lane), 0))
            elif action == "trim":
                bench.now += value
                bench.outbox.trim()
            elif action == "reopen":
                bound = bench.outbox._bound
                bench.reopen()
                bench.outbox._bound = bound
            else:
                bench.outbox.renew_epoch()
        _check_ledger(bench.path, marks)
    finally:
        bench.outbox.close()


def _check_ledger(path: Path, marks: dict[tuple[str, str], int]) -> None:
    """As an audit would read it: from the file alone."""
    with sqlite3.connect(path) as connection:
        here: dict[tuple[str, str], dict[int, str]] = {}
        for epoch, lane, sequence, state in connection.execute("SELECT epoch, lane, sequence, state FROM letters"):
            here.setdefault((epoch, lane), {})[sequence] = state
        gone: dict[tuple[str, str], set[int]] = {}
        for epoch, lane, first, last in connection.execute("SELECT epoch, lane, first, last FROM losses"):
            gone.setdefault((epoch, lane), set()).update(range(first, last + 1))
        for epoch, lane, issued, mark in connection.execute("SELECT epoch, lane, issued, mark FROM lanes"):
            key = (epoch, lane)
            for sequence in range(1, issued + 1):
                state = here.get(key, {}).get(sequence)
                lost = sequence in gone.get(key, set())
                assert (state is not None) + lost <= 1
                if state is None and not lost:
                    assert sequence <= marks.get(key, 0)
                assert state != "receipted" or sequence <= mark
                assert state != "waiting" or sequence > mark
        totals = dict(connection.execute("SELECT state, sum(letters) FROM totals GROUP BY state"))
        counted = dict(connection.execute("SELECT state, count(*) FROM letters GROUP BY state"))
        assert {k: v for k, v in totals.items() if v} == counted
    connection.close()
