"""After a cut at any effect, on any disk that it may leave: what was promised to programs and to the courier holds."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.letters.admission import Admission
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from schemas.events import DownLetter, Untyped
from schemas.registry import Twin
from tests.power.recording import cuts, kill_at_effects, lay_out, record
from tests.power.workloads.outbox import LIMITS


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as database:
        found = database.execute(query).fetchall()
    database.close()
    return found


def given_up(path: Path) -> list[tuple[Any, ...]]:
    return rows(path, "SELECT epoch, lane, first, last FROM losses WHERE reason <> 'renumbered'")


def check_outbox(folder: Path, promises: list[dict[str, Any]]) -> None:
    path = folder / "outbox.db"
    outbox = Outbox(path, LIMITS, lambda: 1_000_000.0)
    added = [promise["added"] for promise in promises if "added" in promise]
    sent = [tuple(promise["sent"]) for promise in promises if "sent" in promise]
    marks = {
        (promise["epoch"], lane): mark
        for promise in promises
        if "receipted" in promise
        for lane, mark in promise["receipted"].items()
    }
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    held = {row[0]: row[1:] for row in rows(path, "SELECT id, epoch, lane, sequence, state FROM letters")}
    places = {(epoch, lane, sequence): name for name, (epoch, lane, sequence, _) in held.items()}
    assert len(places) == len(held), "two letters on one number"

    # A program was told that these are safe: they wait, or were receipted and trimmed, or are noted as given up.
    receipted = {name for epoch, lane, sequence, name in sent if sequence <= marks.get((epoch, lane), 0)}
    missing = [name for name in added if name not in held and name not in receipted]
    lost = sum(last - first + 1 for _, _, first, last in given_up(path))
    assert len(missing) <= lost, f"{len(missing)} letters are gone, the ledger knows of {lost}"

    # The courier may have seen these: no other letter may ever stand on their numbers.
    for epoch, lane, sequence, name in sent:
        assert places.get((epoch, lane, sequence), name) == name
    lanes, epoch = outbox.lanes(), outbox.epoch
    for sent_epoch, lane, sequence, _ in sent:
        assert sent_epoch != epoch or lanes[lane][0] >= sequence

    # Numbers without a hole, but for those given up.
    for lane, (issued, mark) in lanes.items():
        gaps = {
            number
            for *place, first, last in given_up(path)
            if place == [epoch, lane]
            for number in range(first, last + 1)
        }
        here = {place[2] for place in places if place[:2] == (epoch, lane)}
        assert set(range(mark + 1, issued + 1)) <= here | gaps

    outbox.add("sample", Untyped(after="the cut"), "normal")
    outbox.close()


def check_inbox(folder: Path, promises: list[dict[str, Any]]) -> None:
    inbox = Inbox(folder / "inbox.db", lambda: 1_767_312_000.0)
    handled = {promise["handled"] for promise in promises if "handled" in promise}
    maybe = {promise["handling"] for promise in promises if "handling" in promise}
    held = {letter.id for letter in inbox.held()}
    newest = 0
    for promise in promises:
        if "got" in promise:
            letter = DownLetter[Twin].model_validate_json(promise["got"])
            # The courier deletes what was said got: nobody sends it again, and a replay must not pass.
            assert inbox.judge(letter, "config") in {Admission.KNOWN, Admission.REPLAYED}
            assert letter.id in held or letter.id in maybe
            assert letter.id not in held or letter.id not in handled
            newest = max(newest, letter.time.timestamp())
    floor = inbox.time_floor()
    assert newest == 0 or (floor is not None and floor.timestamp() >= newest)
    facts = [promise["fact"] for promise in promises if "fact" in promise]
    assert not facts or int(inbox.fact("twin") or 0) >= facts[-1]
    inbox.close()


CHECKS = {"outbox": check_outbox, "inbox": check_inbox}


@pytest.mark.parametrize("workload", CHECKS)
def test_promises_hold_on_every_disk_that_a_cut_may_leave(
    recorder: Path, seeds: range, memory_folder: Path, workload: str
) -> None:
    moments = 0
    for seed in seeds:
        recording = record(recorder, memory_folder / str(seed), workload, str(seed))
        for where, found, promises in cuts(recording.log, seed, guesses=1):
            if f"/{workload}.db" not in found:
                assert not promises, f"{where}: the file is gone"
                continue
            folder = lay_out(found, memory_folder / "disk")
            try:
                CHECKS[workload](folder, promises)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {where}") from error
            moments += 1
    assert moments > 300


@pytest.mark.parametrize("workload", CHECKS)
def test_promises_hold_after_a_kill_at_every_effect(
    recorder: Path, memory_folder: Path, kills: int | None, workload: str
) -> None:
    def check(folder: Path, promises: list[dict[str, Any]]) -> None:
        if (folder / f"{workload}.db").exists():
            CHECKS[workload](folder, promises)
        else:
            assert not promises

    assert kill_at_effects(recorder, memory_folder, workload, "7", kills=kills, check=check) >= (kills or 600)


def test_a_promise_made_before_the_sync_is_caught(recorder: Path, memory_folder: Path) -> None:
    """The check itself: an outbox that does not wait for its disk must fail it."""
    recording = record(recorder, memory_folder, "careless")

    def check_all() -> None:
        for _, found, promises in cuts(recording.log, 1, guesses=0):
            if "/outbox.db" in found:
                check_outbox(lay_out(found, memory_folder / "disk"), promises)

    with pytest.raises(AssertionError, match="letters are gone"):
        check_all()
