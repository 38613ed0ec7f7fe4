"""The loss ledger: what was given up is told by name, once, whatever crashes in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from edge_runtime.errors import OutboxError
from edge_runtime.letters import losses as module
from edge_runtime.letters import outbox
from edge_runtime.letters.sending import Run
from edge_runtime.settings import OutboxLimits
from schemas.courier import Losses
from schemas.envelope import MAX_LETTER_BYTES
from schemas.events import Untyped
from tests.support.outbox import Bench


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.outbox.close()


def told(bench: Bench) -> list[Losses]:
    """Every report that is still in the file."""
    return [Losses.read(data.encode()) for (data,) in bench.rows("SELECT data FROM letters WHERE kind = 'losses'")]


def flat(reports: list[Losses]) -> list[tuple[str, int, str]]:
    return [(loss.lane, n, loss.reason) for r in reports for loss in r.losses for n in range(loss.first, loss.last + 1)]


def test_a_loss_is_told_by_name_in_one_letter_of_the_control_lane(bench) -> None:
    ids = [bench.add(number) for number in range(93)]
    (report,) = bench.outbox.report_losses()
    (letter,) = bench.outbox.load("control", Run(1, 1))
    assert (letter.id, letter.kind) == (report, "losses")
    (loss,) = told(bench)[0].losses
    assert (loss.lane, loss.first, loss.last, loss.reason, loss.letters) == ("normal", 1, 3, "evicted", 3)
    assert [(name.id, name.kind, name.sequence) for name in loss.names] == [(ids[n], "sample", n + 1) for n in range(3)]
    assert bench.outbox.report_losses() == []


def test_what_is_lost_after_a_report_is_in_the_next(bench) -> None:
    for number in range(95):
        bench.add(number)
    bench.outbox.report_losses()
    bench.add()
    bench.add()
    bench.reopen()
    bench.outbox.report_losses()
    assert flat(told(bench)) == [("normal", n, "evicted") for n in range(1, len(flat(told(bench))) + 1)]
    assert bench.losses()[0] == ("normal", 1, 5, "evicted", 5)
    assert bench.rows("SELECT count(*) FROM losses WHERE report IS NULL") == [(0,)]


def maybe_arrived(bench: Bench) -> list[tuple[int, int, bool]]:
    bench.outbox.report_losses()
    found = [loss for report in told(bench) for loss in report.losses if loss.letters and loss.lane == "normal"]
    return sorted((loss.first, loss.last, loss.maybe_arrived) for loss in found)


@pytest.mark.parametrize("restarted", [False, True])
def test_the_ledger_tells_what_was_sent_from_what_was_not(bench, monkeypatch, restarted) -> None:
    monkeypatch.setattr(outbox, "RELEASE_AHEAD", 2)
    for number in range(90):
        bench.add(number)
    bench.outbox.load("normal", Run(1, 8))
    if restarted:
        bench.reopen()
    for number in range(20):
        bench.add(number)
    assert maybe_arrived(bench) == [(1, 10, True), (11, 20, False)], "noted ahead by two"


def test_what_was_sent_before_a_new_epoch_may_have_arrived_in_the_old(bench, monkeypatch) -> None:
    monkeypatch.setattr(outbox, "RELEASE_AHEAD", 0)
    for number in range(90):
        bench.add(number)
    bench.outbox.load("normal", Run(1, 4))
    bench.outbox.receipt({"normal": 2})
    bench.outbox.renew_epoch()
    for number in range(6):
        bench.add(number)
    assert maybe_arrived(bench) == [(1, 2, True), (3, 4, False)]


def test_what_was_sent_from_memory_may_have_arrived(bench, monkeypatch) -> None:
    monkeypatch.setattr(outbox, "RELEASE_AHEAD", 0)
    first = [bench.add(number) for number in range(3)]
    with bench.full_disk():
        for number in range(30):
            bench.add(number, text="x" * 20_000)
        assert bench.outbox.storage == "memory"
        bench.outbox.load("normal", Run(1, len(first)))
    bench.outbox.trim()
    for number in range(95):
        bench.add(number)
    (sent, *_) = maybe_arrived(bench)
    assert sent == (1, 3, True)


def test_a_report_that_was_given_up_is_told_again(bench, monkeypatch) -> None:
    for number in range(93):
        bench.add(number)
    (report,) = bench.outbox.report_losses()
    names = told(bench)[0].losses[0].names
    for number in range(100):
        bench.add(number, lane="control")
    assert bench.rows(f"SELECT count(*) FROM letters WHERE id = '{report}'") == [(1,)], "others go before it"
    with bench.outbox.database.write("give a report up") as connection:
        module.give_up(
            connection, connection.execute("SELECT * FROM letters WHERE id = ?", (report,)).fetchone(), "evicted"
        )
    (again,) = bench.outbox.report_losses()
    assert again != report
    found = [name for loss in told(bench)[0].losses if loss.lane == "normal" and loss.first == 1 for name in loss.names]
    assert found[:3] == names


def test_reports_wait_in_small_number_and_every_loss_is_told_in_the_end(tmp_path) -> None:
    bench = Bench(tmp_path, OutboxLimits(max_letters=1_000))
    marks = {"control": 0}
    for number in range(4_000):
        bench.add(number)
    seen: list[Losses] = []
    while bench.outbox.report_losses():
        reports = told(bench)
        waiting = bench.rows("SELECT count(*) FROM letters WHERE kind = 'losses' AND state = 'waiting'")[0][0]
        assert waiting <= module.MAX_WAITING_REPORTS
        seen = reports
        marks["control"] = bench.outbox.lanes()["control"][0]
        bench.outbox.receipt(marks)
    numbers = [n for _, n, _ in flat(seen)]
    # Reports take room themselves, so that a few more went.
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 3_100
    named = sum(len(loss.names) for report in seen for loss in report.losses)
    assert named == module.MAX_NAMES + sum(1 for n in numbers if n > 3_100)
    for (data,) in bench.rows("SELECT data FROM letters WHERE kind = 'losses'"):
        assert len(data) * 4 // 3 < MAX_LETTER_BYTES - 2_000
    bench.outbox.close()


def test_a_new_epoch_tells_which_numbers_it_gave_anew(bench) -> None:
    bench.add()
    old = bench.outbox.epoch
    bench.outbox.renew_epoch()
    bench.outbox.report_losses()
    (loss,) = told(bench)[0].losses
    assert (loss.epoch, loss.reason, loss.first, loss.letters) == (old, "renumbered", 1, 0)


def test_ranges_that_were_told_are_forgotten_beyond_a_bound(bench, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_REPORTED", 3)
    for number in range(20):
        bench.add(number, latest="a" if number % 2 else None)
    bench.outbox.report_losses()
    assert len(bench.losses()) == 9
    bench.outbox.trim()
    assert len(bench.losses()) == 9, "letters below them may still have to be sent again"
    bench.outbox.receipt({"normal": 20, "control": 1})
    bench.now += 90_000
    bench.outbox.trim()
    assert len(bench.losses()) == 3


def test_the_newest_of_a_key_replaces_what_waits(bench) -> None:
    first = bench.add(1, latest="door")
    bench.add(2, latest="window")
    bench.add(3)
    newest = bench.add(4, latest="door")
    assert [sequence for sequence, _ in bench.all_above()] == [2, 3, 4]
    assert bench.all_above()[-1][1] == newest
    assert bench.losses() == [("normal", 1, 1, "superseded", 1)]
    bench.outbox.report_losses()
    assert told(bench)[0].losses[0].names[0].id == first
    summary = bench.outbox.summary()
    assert (summary.superseded, summary.dropped) == (1, 0)


def test_the_same_key_of_another_kind_is_another_key(bench) -> None:
    bench.add(1, latest="a")
    bench.outbox.add("result", Untyped(), "normal", latest="a")
    assert bench.sequences() == [1, 2]


def test_a_letter_that_may_have_been_sent_is_not_replaced(bench) -> None:
    bench.add(1, latest="a")
    assert bench.sequences() == [1]  # loading is sending
    bench.add(2, latest="a")
    bench.reopen()
    bench.add(3, latest="a")
    assert [sequence for sequence, _ in bench.all_above()] == [1, 3]
    assert bench.losses() == [("normal", 2, 2, "superseded", 1)]


def test_another_process_does_not_replace_what_was_sent_either(bench) -> None:
    other = bench.another()
    bench.add(1, latest="a")
    bench.sequences()
    other.add("sample", Untyped(number=2), "normal", latest="a")
    other.add("sample", Untyped(number=3), "normal", latest="a")
    assert [sequence for sequence, _ in bench.all_above()] == [1, 3]
    other.close()


def test_a_letter_that_goes_between_look_up_and_load_ends_the_run(bench) -> None:
    bench.add(1)
    bench.add(2, latest="a")
    bench.add(3)
    run = bench.outbox.run_above("normal", 0)
    bench.add(4, latest="a")
    assert [letter.sequence for letter in bench.outbox.load("normal", run)] == [1]
    assert bench.all_above()[0][0] == 1


def test_a_letter_that_does_not_fit_replaces_nothing(bench) -> None:
    bench.add(0, lane="bulk", latest="a")
    for number in range(24):
        bench.add(number, lane="control", text="x" * 40_000)
    with pytest.raises(OutboxError, match="full of more urgent"):
        bench.add(1, lane="bulk", latest="a")
    assert bench.losses() == []
    assert bench.sequences("bulk") == [1]


CRASHER = """
import os, sys
from pathlib import Path
from edge_runtime.letters import losses, shelf
from tests.support.outbox import Bench

bench = Bench(Path(sys.argv[1]))
for number in range(95):
    bench.add(number)
at = sys.argv[2]
real = shelf.store
def store(*arguments):
    if at == "before": os.kill(os.getpid(), 9)
    real(*arguments)
    if at == "after": os.kill(os.getpid(), 9)
shelf.store = store
bench.outbox.report_losses()
if at == "done": os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("at", "reports"), [("before", 0), ("after", 0), ("done", 1)])
def test_a_report_is_stored_with_its_note_or_not_at_all(tmp_path, at, reports) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CRASHER, str(tmp_path), at], env=environment, check=False, timeout=60)
    assert done.returncode == -9
    bench = Bench(tmp_path)
    assert len(told(bench)) == reports
    assert len(bench.outbox.report_losses()) == 1 - reports
    assert flat(told(bench)) == [("normal", n, "evicted") for n in range(1, 6)]
    assert json.loads(bench.rows("SELECT data FROM letters WHERE kind = 'losses'")[0][0])["losses"][0]["letters"] == 5
    bench.outbox.close()
