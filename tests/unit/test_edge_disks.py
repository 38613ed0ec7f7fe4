"""Disks that are full, read-only or broken for real, and files that cannot be seen."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edge_runtime.errors import OutboxError
from edge_runtime.letters.heads import foreign_marks
from edge_runtime.letters.inbox import Inbox
from schemas.events import LANES
from services.courier.up.ordering import LaneKey, Slip, Verdict, rule
from tests.support.outbox import Bench, break_disk, die, failing_disk, fill_disk, remount, small_disk
from tests.unit.test_edge_inbox import letter

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.outbox.close()


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
        assert bench.outbox.lanes()["normal"][1] == 1
        assert [letter_id for _, letter_id in bench.all_above(mark=1)] == ids[1:]
        bench.outbox.receipt({"normal": 2})
        assert bench.outbox.trim() == 0
        remount(folder, "rw")
        bench.outbox.database._tried_at = 0.0
        bench.outbox.trim()
        assert bench.outbox.storage == "disk"
        bench.reopen()
        assert bench.outbox.lanes()["normal"][1] == 2
        assert [letter_id for _, letter_id in bench.all_above(mark=2)] == ids[2:]
        bench.outbox.close()


@as_root
def test_lives_on_a_disk_that_cannot_be_written_give_no_number_twice(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 4_096) as folder:
        bench = Bench(folder)
        for number in range(3):
            bench.add(number)
        bench.outbox.receipt({"normal": 3})
        bench.outbox.close()
        remount(folder, "ro")
        epochs, given = set(), []
        for _ in range(3):
            bench.open()
            for lane in LANES:
                bench.add(lane=lane)
                bench.add(lane=lane)
            epochs.add(bench.outbox.epoch)
            given += [(lane, number) for lane in LANES for number, _ in bench.all_above(lane, 3)]
            die(bench)
        assert len(epochs) == 1, "as the platform knows it, also if the disk is mended before the next start"
        assert len(given) == len(set(given)) == 18

        bench.open()
        letter_id, _ = bench.add(), bench.add()
        own = bench.all_above(mark=3)[0][0]
        for mark, heads in ((4, {}), (own - 2, {}), (own - 1, {"normal": "another's"})):
            # What an earlier life sent meanwhile: nothing of it is known here.
            for later in (False, True):
                found = foreign_marks(bench.outbox, bench.outbox.lanes(), {"normal": mark}, heads, later=later)
                assert found == {"normal": mark}
        lifted = lifted_by_what_comes_early(bench)
        assert lifted == own - 1
        for later in (False, True):
            assert foreign_marks(bench.outbox, bench.outbox.lanes(), {"normal": lifted}, {}, later=later) == {}
        assert foreign_marks(bench.outbox, bench.outbox.lanes(), {"normal": own}, {"normal": letter_id}) == {}
        remount(folder, "rw")
        bench.outbox.database._tried_at = 0.0
        bench.outbox.trim()
        bench.reopen()
        assert bench.all_above(mark=3)[0] == (own, letter_id)
        assert ("normal", 4, own - 1, "renumbered", 0) in bench.losses()
        assert bench.outbox.summary().dropped == 0
        assert foreign_marks(bench.outbox, bench.outbox.lanes(), {"normal": own - 2}, {}) == {"normal": own - 2}
        assert foreign_marks(bench.outbox, bench.outbox.lanes(), {"normal": own - 1}, {}) == {}
        bench.outbox.close()


def lifted_by_what_comes_early(bench: Bench) -> int:
    """The courier's mark of `normal`, once it got what waits except its first letter."""
    run = bench.outbox.run_above("normal", 3)
    _, *others = bench.outbox.load("normal", run)
    lane = LaneKey("home", "cam-1", bench.outbox.epoch, "normal")
    ruling = rule([Slip(lane, letter.sequence, letter.floor) for letter in others], {lane: 3})
    assert set(ruling.verdicts) == {Verdict.EARLY}
    return ruling.marks[lane]


@as_root
def test_a_start_on_a_full_disk_that_takes_the_boat_passes_no_number_over(tmp_path, caplog) -> None:
    with small_disk(tmp_path / "disk", 512) as folder:
        bench = Bench(folder)
        first = bench.add(0)
        bench.outbox.close()
        fill_disk(folder / "ballast")
        for _ in range(2):
            bench.open()
            assert bench.outbox.lanes() == {"normal": (1, 0)}
            die(bench)
        bench.open()
        bench.add(1)
        die(bench)
        (folder / "ballast").unlink()
        lost = [record for record in caplog.records if record.getMessage() == "outbox.letters_lost_in_memory"]
        assert lost == [], "none was"
        bench.open()
        (said,) = (record for record in caplog.records if record.getMessage() == "outbox.letters_lost_in_memory")
        assert said.fields["letters"] == 1
        assert bench.all_above() == [(1, first)]
        assert bench.losses() == [("normal", 2, 2, "disk", 1)]
        bench.outbox.close()


@as_root
def test_a_new_epoch_on_a_disk_that_cannot_be_written_leaves_nothing_behind(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 4_096) as folder:
        bench = Bench(folder)
        ids = [bench.add(number) for number in range(3)]
        bench.outbox.close()
        remount(folder, "ro")
        bench.open()
        old = bench.outbox.epoch
        ids = [bench.add(3), *ids]
        bench.outbox.renew_epoch()
        remount(folder, "rw")
        bench.outbox.database._tried_at = 0.0
        bench.outbox.trim()
        bench.reopen()
        assert bench.all_above() == list(enumerate(ids, 1))
        told = bench.rows(f"SELECT lane, min(first), sum(letters) FROM losses WHERE epoch = '{old}' GROUP BY lane")
        assert told == [("bulk", 1, 0), ("control", 1, 0), ("normal", 1, 0)]
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
