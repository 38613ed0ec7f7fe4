"""What is known after a process died with letters in memory."""

from __future__ import annotations

import errno

import pytest

from edge_runtime.letters.boat import Boat, Manifest
from edge_runtime.letters.sending import Run
from schemas.events import Untyped
from tests.support.outbox import Bench, die, fill


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.outbox.close()


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
