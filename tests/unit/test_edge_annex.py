"""While the disk does not take letters the host program goes on, and what it wrote arrives in its order."""

from __future__ import annotations

import logging

import pytest

from edge_runtime.errors import OutboxError
from edge_runtime.letters import store
from edge_runtime.letters.heads import foreign_marks
from edge_runtime.letters.sending import Run
from edge_runtime.settings import OutboxLimits
from schemas.events import Untyped
from tests.support.outbox import Bench, fill


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.outbox.close()


def test_a_full_disk_is_no_error_and_letters_go_on_in_their_order(bench, caplog) -> None:
    caplog.set_level(logging.INFO)
    before = [bench.add(0), bench.add(1)]
    with bench.full_disk():
        in_memory = fill(bench)
        assert bench.outbox.storage == "memory"
        summary = bench.outbox.summary()
        assert (summary.storage, summary.waiting.letters, summary.refused) == ("memory", 26, 0)
        assert "the disk is full; free some space" in (summary.problem or "")
        assert bench.all_above() == list(enumerate(before + in_memory, 1))
        assert bench.outbox.lanes() == {"normal": (26, 0)}
    bench.outbox.trim()
    assert bench.outbox.storage == "disk"
    assert bench.outbox.summary().problem is None
    bench.reopen()
    assert bench.all_above() == list(enumerate(before + in_memory, 1))
    assert [r.getMessage() for r in caplog.records] == ["outbox.in_memory", "outbox.on_disk"], "said once per change"


def test_a_new_letter_finds_out_that_the_disk_works_again(bench, monkeypatch) -> None:
    with bench.full_disk():
        fill(bench)
    bench.add()
    assert bench.outbox.storage == "memory", "the disk was tried a moment ago"
    monkeypatch.setattr(store, "MOVE_AGAIN_S", 0.0)
    bench.add()
    assert bench.outbox.storage == "disk"
    assert bench.sequences() == list(range(1, 27))


def test_receipts_that_cannot_be_written_count_all_the_same(bench) -> None:
    for number in range(10):
        bench.add(number)
    with bench.full_disk():
        fill(bench)
        bench.outbox.receipt({"normal": 15})
        assert bench.outbox.lanes() == {"normal": (34, 15)}
        assert bench.outbox.summary().waiting.letters == 19
        assert bench.sequences(mark=15) == list(range(16, 35))
        assert bench.outbox.load("normal", Run(16, 16))[0].floor <= 16
        bench.outbox.receipt({"normal": 12})  # the courier was restored
        assert bench.sequences(mark=12) == list(range(13, 35))
    bench.outbox.trim()
    assert bench.outbox.storage == "disk"
    assert bench.outbox.lanes() == {"normal": (34, 12)}
    assert bench.outbox.summary().waiting.letters == 22


def test_kinds_and_ids_are_found_wherever_they_are(bench) -> None:
    bench.outbox.add("enrol", Untyped(a=1), "control", "01J00000000000000000000001")
    with bench.full_disk():
        fill(bench)
        bench.outbox.add("enrol", Untyped(a=2), "control", "01J00000000000000000000002")
        assert bench.outbox.ids("enrol") == ["01J00000000000000000000001", "01J00000000000000000000002"]
        assert bench.outbox.add("enrol", Untyped(), "control", "01J00000000000000000000001")
        bench.outbox.receipt({"control": 1})
        assert [found for found, _ in bench.outbox.waiting("enrol")] == ["01J00000000000000000000002"]


def test_memory_is_bounded_and_what_it_loses_is_noted(bench) -> None:
    limits = OutboxLimits(max_bytes=8 << 20, memory_bytes=1 << 20)
    bench.outbox.close()
    bench.limits = limits
    bench.open()
    with bench.full_disk():
        ids = [bench.add(number, text="x" * 40_000) for number in range(40)]
        summary = bench.outbox.summary()
        assert summary.waiting.bytes <= 1 << 20
        assert summary.dropped > 0
        assert summary.dropped + summary.waiting.letters == 40
        assert bench.outbox.report_losses() == []
    bench.outbox.trim()
    dropped = summary.dropped
    assert bench.losses() == [("normal", 1, dropped, "disk", dropped)]
    assert bench.outbox.report_losses()
    assert [letter_id for _, letter_id in bench.all_above()] == ids[dropped:]


def test_a_letter_in_memory_is_replaced_by_a_newer_one_of_its_key(bench) -> None:
    with bench.full_disk():
        fill(bench, 23)
        bench.add(1, latest="a")
        bench.add(2, latest="a")
        assert [sequence for sequence, _ in bench.all_above()][-1] == 25
        bench.add(3, latest="a")  # 25 was sent
    bench.outbox.trim()
    assert [sequence for sequence, _ in bench.all_above()][-2:] == [25, 26]
    assert bench.losses() == [("normal", 24, 24, "superseded", 1)]


def test_what_another_process_wrote_meanwhile_moves_behind_what_may_have_been_sent(bench) -> None:
    bench.add(0)
    other = bench.another()
    with bench.full_disk():
        mine = fill(bench)
        sent = bench.all_above()
    theirs = [other.add("sample", Untyped(number=n), "normal") for n in range(3)]
    assert bench.all_above() == sent, "numbers that were sent stay what they were"
    assert foreign_marks(bench.outbox, bench.outbox.lanes(), {"normal": 2}, {"normal": mine[0]}) == {}
    bench.outbox.trim()
    assert [letter_id for _, letter_id in bench.all_above()] == [sent[0][1], *mine, *theirs]
    assert [sequence for sequence, _ in bench.all_above()] == list(range(1, 29))
    assert [sequence for sequence, _ in bench.all_above()][:25] == [sequence for sequence, _ in sent]
    assert other.lanes() == {"normal": (28, 0)}
    other.close()


@pytest.mark.parametrize("renewed", [False, True])
def test_what_a_process_that_does_not_send_had_in_memory_joins_the_end(bench, renewed) -> None:
    bench.add(0)
    other = bench.another()
    other.database.limit_pages(other.database.pages())
    theirs = [other.add("sample", Untyped(text="x" * 20_000), "normal") for _ in range(24)]
    other.add("sample", Untyped(), "normal", latest="a")
    theirs.append(other.add("sample", Untyped(), "normal", latest="a"))
    assert other.storage == "memory"
    other.database.limit_pages(1_000_000)
    for number in range(3):
        bench.add(number)
    if renewed:
        bench.outbox.receipt({"normal": 2})
        bench.outbox.renew_epoch()
    sent = bench.all_above()
    bench.outbox.receipt({"normal": 2})
    other.trim()
    assert other.storage == "disk"
    issued = len(sent) + 26
    assert bench.outbox.lanes() == {"normal": (issued, 2)}, "a mark stays, and a number is given once"
    assert bench.all_above(mark=2) == [
        *sent[2:],
        *zip([*range(len(sent) + 1, issued - 1), issued], theirs, strict=True),
    ]
    assert ("normal", issued - 1, issued - 1, "superseded", 1) in bench.losses()
    other.close()


def test_a_new_epoch_in_memory_takes_the_file_along_later(bench) -> None:
    first = [bench.add(n) for n in range(3)]
    with bench.full_disk():
        later = fill(bench)
        old, new = bench.outbox.epoch, bench.outbox.renew_epoch()
        assert bench.outbox.epoch == new
        assert bench.outbox.lanes() == {"normal": (24, 0)}
        assert bench.all_above() == list(enumerate(later, 1)), "what the file holds cannot be renumbered yet"
        assert bench.outbox.summary().waiting.letters == 27
    bench.outbox.trim()
    assert bench.outbox.epoch == new
    assert bench.all_above() == list(enumerate(later + first, 1))
    assert (old, 1, 27) in bench.rows("SELECT epoch, first, last FROM losses WHERE reason = 'renumbered'")


def test_letters_that_never_reach_the_disk_are_named_in_the_log(tmp_path, caplog) -> None:
    bench = Bench(tmp_path)
    bench.outbox.database.limit_pages(bench.outbox.database.pages())
    ids = fill(bench)
    bench.outbox.close()
    (record,) = [record for record in caplog.records if record.getMessage() == "outbox.lost"]
    assert record.fields["letters"] == 24
    assert record.fields["first"] == ids[:20]


def test_letters_in_memory_are_handed_to_the_outbox_that_sends(bench) -> None:
    other = bench.another()
    bench.add(0)
    other.database.limit_pages(other.database.pages())
    theirs = [other.add("sample", Untyped(text="x" * 20_000), "normal") for _ in range(24)]
    assert other.storage == "memory"
    other.hand_over(bench.outbox)
    assert [letter_id for _, letter_id in bench.all_above()][1:] == theirs


def test_what_was_lost_in_memory_is_handed_over_too(bench) -> None:
    other = Bench(bench.path.parent, OutboxLimits(max_bytes=8 << 20, memory_bytes=1 << 20)).another()
    bench.add(0)
    other.database.limit_pages(other.database.pages())
    evicted = [other.add("sample", Untyped(text="x" * 40_000), "normal") for _ in range(40)]
    replaced = other.add("sample", Untyped(), "normal", latest="door")
    theirs = other.add("sample", Untyped(), "normal", latest="door")
    lost = other.summary().dropped
    assert lost > 0
    other.hand_over(bench.outbox)
    assert [letter_id for _, letter_id in bench.all_above()][1:] == [*evicted[lost:], theirs]
    assert (bench.outbox.summary().dropped, bench.outbox.summary().superseded) == (lost, 1)
    assert bench.losses() == [("normal", 2, 1 + lost, "disk", lost), ("normal", 42, 42, "superseded", 1)]
    assert {row[0] for row in bench.rows("SELECT id FROM lost")} == {*evicted[:lost], replaced}


def test_what_was_lost_in_memory_is_handed_over_to_memory(bench) -> None:
    other = bench.another()
    bench.add(0)
    for each in (other, bench.outbox):
        each.database.limit_pages(each.database.pages())
    mine = fill(bench, 10)
    theirs = [other.add("sample", Untyped(text="x" * 20_000), "normal") for _ in range(24)]
    other.add("sample", Untyped(), "normal", latest="door")
    theirs.append(other.add("sample", Untyped(), "normal", latest="door"))
    other.hand_over(bench.outbox)
    bench.outbox.database.limit_pages(1_000_000)
    bench.outbox.trim()
    assert [letter_id for _, letter_id in bench.all_above()][1:] == [*mine, *theirs]
    assert bench.losses() == [("normal", 36, 36, "superseded", 1)]


def test_a_letter_that_fails_for_another_reason_is_still_refused(bench) -> None:
    with pytest.raises(OutboxError, match="by digest"):
        bench.add(text="x" * 60_000)
    assert bench.outbox.storage == "disk"
