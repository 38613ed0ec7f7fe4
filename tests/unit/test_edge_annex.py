"""A disk that is full, read-only or broken: the host program goes on, and what it wrote arrives."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from edge_runtime.errors import OutboxError
from edge_runtime.letters import store
from edge_runtime.letters.boat import Boat, Manifest
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.sending import Run
from edge_runtime.settings import OutboxLimits
from schemas.events import Untyped
from tests.support.outbox import Bench, break_disk, failing_disk, fill_disk, remount, small_disk
from tests.unit.test_edge_inbox import letter

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.outbox.close()


def fill(bench: Bench, letters: int = 24) -> list[str]:
    return [bench.add(number, text="x" * 20_000) for number in range(letters)]


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


def test_a_letter_that_fails_for_another_reason_is_still_refused(bench) -> None:
    with pytest.raises(OutboxError, match="by digest"):
        bench.add(text="x" * 60_000)
    assert bench.outbox.storage == "disk"


@as_root
def test_a_disk_that_is_really_full_from_the_first_write(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 512) as folder:
        bench = Bench(folder)
        ids = [bench.add(number, text="x" * 10_000) for number in range(60)]
        assert bench.outbox.storage == "memory"
        assert [letter_id for _, letter_id in bench.all_above()] == ids
        bench.outbox.receipt({"normal": 30})
        remount(folder, "rw,size=8m")
        bench.outbox.trim()
        assert bench.outbox.storage == "disk"
        bench.reopen()
        assert bench.outbox.lanes() == {"normal": (60, 30)}
        assert [letter_id for _, letter_id in bench.all_above(mark=30)] == ids[30:]
        bench.outbox.close()


@as_root
def test_a_start_on_a_full_disk_reads_what_is_there(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 512) as folder:
        bench = Bench(folder)
        first = bench.add(0)
        epoch = bench.outbox.epoch
        bench.outbox.close()
        fill_disk(folder / "ballast")
        bench.open()
        assert bench.outbox.epoch == epoch
        later = bench.add(1)
        assert bench.all_above() == [(1, first), (2, later)]
        assert bench.outbox.storage == "memory"
        (folder / "ballast").unlink()
        bench.outbox.database._tried_at = 0.0
        bench.outbox.trim()
        assert bench.outbox.storage == "disk"
        bench.reopen()
        assert bench.all_above() == [(1, first), (2, later)]
        bench.outbox.close()


@as_root
@pytest.mark.parametrize("crashed", [False, True])
def test_a_start_on_a_read_only_disk_reads_what_is_there(tmp_path, crashed) -> None:
    with small_disk(tmp_path / "disk", 4_096) as folder:
        bench = Bench(folder)
        ids = [bench.add(n) for n in range(3)]
        bench.outbox.receipt({"normal": 1})
        if crashed:  # the log stays beside the file
            (tmp_path / "copy").mkdir()
            kept = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}
            bench.outbox.close()
            for name, data in kept.items():
                (folder / name).write_bytes(data)
        else:
            bench.outbox.close()
        remount(folder, "ro")
        bench.open()
        ids.append(bench.add(3))
        assert bench.outbox.lanes() == {"normal": (4, 1)}
        assert [letter_id for _, letter_id in bench.all_above(mark=1)] == ids[1:]
        bench.outbox.receipt({"normal": 2})
        assert bench.outbox.trim() == 0
        remount(folder, "rw")
        bench.outbox.database._tried_at = 0.0
        bench.outbox.trim()
        assert bench.outbox.storage == "disk"
        bench.reopen()
        assert bench.outbox.lanes() == {"normal": (4, 2)}
        assert [letter_id for _, letter_id in bench.all_above(mark=2)] == ids[2:]
        bench.outbox.close()


@as_root
def test_a_read_only_disk_without_a_file_begins_in_memory(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 4_096) as folder:
        remount(folder, "ro")
        bench = Bench(folder)
        letter_id, epoch = bench.add(1), bench.outbox.epoch
        assert bench.outbox.storage == "memory"
        assert bench.all_above() == [(1, letter_id)]
        remount(folder, "rw")
        bench.outbox.database._tried_at = 0.0
        bench.outbox.trim()
        bench.reopen()
        assert (bench.outbox.epoch, bench.outbox.storage) == (epoch, "disk")
        assert bench.all_above() == [(1, letter_id)]
        bench.outbox.close()


def test_a_file_that_may_not_be_written_is_as_good_as_a_read_only_disk(bench) -> None:
    first = bench.add(0)
    bench.outbox.database.read("PRAGMA query_only=1")
    second = bench.add(1)
    assert bench.outbox.storage == "memory"
    assert "not writable" in (bench.outbox.summary().problem or "")
    assert bench.all_above() == [(1, first), (2, second)]
    bench.outbox.database.read("PRAGMA query_only=0")
    bench.outbox.trim()
    assert bench.outbox.storage == "disk"


def test_a_file_out_of_sight_is_found_again_and_its_letters_come_last(tmp_path) -> None:
    bench = Bench(tmp_path)
    old = [bench.add(n) for n in range(3)]
    old_epoch = bench.outbox.epoch
    bench.outbox.close()
    hidden = tmp_path / "hidden"
    bench.path.rename(hidden)
    bench.path.mkdir()  # neither readable nor writable, for root too
    bench.open()
    new = [bench.add(n) for n in range(2)]
    assert bench.outbox.epoch > old_epoch
    assert bench.all_above() == list(enumerate(new, 1))
    bench.path.rmdir()
    hidden.rename(bench.path)
    bench.outbox.database._tried_at = 0.0
    bench.outbox.trim()
    assert bench.outbox.storage == "disk"
    assert bench.outbox.epoch > old_epoch, "an epoch that ended may not speak again"
    assert bench.all_above() == list(enumerate(new + old, 1))
    bench.outbox.close()


@as_root
def test_an_inbox_on_a_read_only_disk_says_what_it_knows_and_takes_no_letter(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 4_096) as folder:
        inbox = Inbox(folder / "inbox.db", lambda: 1_000.0)
        taken = letter(1)
        inbox.take(taken, "config", b"envelope", "k1")
        inbox.remember("twin", "as it was")
        inbox.close()
        remount(folder, "ro")
        inbox = Inbox(folder / "inbox.db", lambda: 1_000.0)
        assert [held.id for held in inbox.held()] == [taken.id]
        with pytest.raises(OutboxError, match="not writable"):
            inbox.take(letter(2), "config", b"envelope", "k1")
        inbox.remember("starts", "5")
        inbox.remember("twin", "as it is")
        inbox.prove("k2", 1, taken.time.replace(year=2_030))
        inbox.keep_floors({"k2"})
        inbox.trim()
        assert (inbox.fact("starts"), inbox.fact("twin")) == ("5", "as it is")
        assert inbox.time_floor() == taken.time.replace(year=2_030)
        assert set(inbox.time_floors()) == {"k2"}
        remount(folder, "rw")
        inbox._database._tried_at = 0.0
        inbox.trim()
        inbox.take(letter(2), "config", b"envelope", "k1")
        inbox.close()
        inbox = Inbox(folder / "inbox.db", lambda: 1_000.0)
        assert (inbox.fact("starts"), inbox.fact("twin")) == ("5", "as it is")
        assert inbox.time_floors()["k2"] == taken.time.replace(year=2_030)
        inbox.close()


def die(bench: Bench) -> None:
    """The process ends without a word: nothing of its memory is left."""
    bench.outbox._store.annex = None
    bench.outbox.close()


def test_a_process_that_dies_on_a_full_disk_repeats_nothing_and_names_what_it_lost(bench) -> None:
    before = [bench.add(n) for n in range(10)]
    bench.outbox.receipt({"normal": 2})
    with bench.full_disk():
        fill(bench)
        bench.outbox.receipt({"normal": 15})
        bench.add(99)
        die(bench)
    bench.open()
    assert bench.outbox.storage == "disk"
    assert bench.outbox.lanes() == {"normal": (35, 15)}
    assert bench.all_above(mark=15) == [], "what was receipted is not sent again"
    assert bench.losses() == [("normal", 16, 35, "disk", 20)]
    assert bench.outbox.summary().dropped == 20
    later = bench.add(1)
    assert bench.all_above(mark=15) == [(36, later)]
    assert bench.outbox.load("normal", Run(36, 36))[0].floor == 36
    bench.outbox.receipt({"normal": 5})
    assert [letter_id for _, letter_id in bench.all_above(mark=5)] == [*before[5:], later], "a courier was restored"
    assert len(bench.outbox.report_losses()) == 1
    bench.reopen()
    assert bench.losses() == [("normal", 16, 35, "disk", 20)], "accounted for once"


def test_what_another_process_stored_before_the_next_start_is_not_mistaken_for_it(bench) -> None:
    bench.add(0)
    with bench.full_disk():
        fill(bench)
        bench.outbox.receipt({"normal": 20})
        die(bench)
    other = bench.another()
    theirs = other.add("sample", Untyped(), "normal")
    assert other.lanes() == {"normal": (2, 0)}
    bench.open()
    assert bench.outbox.lanes() == {"normal": (26, 20)}
    assert bench.all_above(mark=20) == [(26, theirs)]
    other.close()


def test_an_epoch_that_began_in_memory_is_not_forgotten(bench) -> None:
    first = [bench.add(n) for n in range(3)]
    with bench.full_disk():
        fill(bench)
        epoch = bench.outbox.renew_epoch()
        bench.outbox.receipt({"normal": 4})
        die(bench)
    bench.open()
    assert bench.outbox.epoch == epoch
    assert bench.outbox.lanes() == {"normal": (27, 4)}
    assert bench.all_above(mark=4) == list(enumerate(first, 25))
    assert ("normal", 5, 24, "disk", 20) in bench.losses()


def test_a_torn_half_of_the_boat_leaves_the_other(tmp_path) -> None:
    path = tmp_path / "boat"
    boat = Boat(path)
    boat.reserve()
    assert boat.load() is None
    for issued in (1, 2):
        boat.save(Manifest("a", "e", "e", {"normal": 0}, [("e", "normal", issued, 0)]))
    raw = bytearray(path.read_bytes())
    found = Boat(path).load()
    assert found is not None
    assert found.lanes == [("e", "normal", 2, 0)]
    raw[100] ^= 1  # of the half that was written last
    path.write_bytes(raw)
    found = Boat(path).load()
    assert found is not None
    assert found.lanes == [("e", "normal", 1, 0)]
    Boat(path).save(Manifest("b", "e", "e", {}, []))


def test_a_boat_that_is_moved_back_is_not_taken_over_again(bench) -> None:
    with bench.full_disk():
        fill(bench)
    bench.outbox.trim()
    ids = bench.all_above()
    bench.reopen()
    assert bench.all_above() == ids
    assert bench.losses() == []


def test_a_boat_of_an_earlier_time_is_not_taken_over_after_another_process_moved_back(bench) -> None:
    with bench.full_disk():
        fill(bench)
    bench.outbox.trim()
    other = bench.another()
    other.database.limit_pages(other.database.pages())
    for _ in range(20):
        other.add("sample", Untyped(text="x" * 20_000), "normal")
    assert other.storage == "memory"
    other.database.limit_pages(1_000_000)
    other.trim()
    assert other.storage == "disk"
    other.close()
    restarted_unharmed(bench)


def test_a_boat_that_could_not_be_written_the_next_time_is_not_taken_over(bench, monkeypatch) -> None:
    with bench.full_disk():
        fill(bench)
    bench.outbox.trim()

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr(Boat, "_write", refuse)
        with bench.full_disk():
            fill(bench, 20)
            assert bench.outbox.storage == "memory"
        bench.outbox.trim()
    assert bench.outbox.storage == "disk"
    restarted_unharmed(bench)


def restarted_unharmed(bench: Bench) -> None:
    letters = bench.all_above()
    assert len(letters) == 44
    bench.outbox.receipt({"normal": 30})
    bench.reopen()
    assert bench.outbox.lanes() == {"normal": (44, 30)}
    assert bench.all_above() == letters
    assert bench.losses() == []


@as_root
@pytest.mark.skipif(not Path("/dev/loop-control").exists() or not shutil.which("mkfs.ext4"), reason="no loop devices")
def test_a_disk_that_the_kernel_makes_read_only_under_open_files(tmp_path) -> None:
    with failing_disk(tmp_path / "disk", tmp_path / "image") as folder:
        bench = Bench(folder)
        ids = [bench.add(n) for n in range(5)]
        bench.outbox.receipt({"normal": 2})
        break_disk(folder)
        ids += [bench.add(n) for n in range(5, 10)]
        assert bench.outbox.storage == "memory"
        bench.outbox.receipt({"normal": 6})
        assert bench.outbox.lanes() == {"normal": (10, 6)}
        assert [letter_id for _, letter_id in bench.all_above(mark=4)] == ids[4:]
        assert bench.outbox.trim() == 0
        bench.outbox.close()
