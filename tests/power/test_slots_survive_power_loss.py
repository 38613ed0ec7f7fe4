"""After a cut at any effect: the commit point is readable, and what it names is there, whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.ota.slots import Slots
from tests.power.recording import cuts, kill_at_effects, lay_out, record


def check(folder: Path, promises: list[dict[str, Any]]) -> None:
    slots = Slots(folder / "slots")
    state = slots.load("digits")
    served = [promise["serves"] for promise in promises if "serves" in promise]
    tried = [promise["may_serve"] for promise in promises if "may_serve" in promise]
    if served:
        assert state.digest in {served[-1], tried[-1]}, "a model that was confirmed is forgotten"
    else:
        assert state.digest in {None, *tried}
    for digest in state.kept:
        assert slots.holds("digits", digest), f"{digest[:12]} is named by the commit point and not there"
        assert hashlib.sha256(slots.file("digits", digest).read_bytes()).hexdigest() == digest, "its bytes are wrong"
        assert slots.release("digits", digest) is not None
    spent = [promise for promise in promises if "trial" in promise]
    if spent and state.trial == spent[-1]["trial"]:
        assert state.tries_left <= spent[-1]["tries_left"], "a try that was spent came back"


def test_slots_hold_on_every_disk_that_a_cut_may_leave(recorder: Path, seeds: range, memory_folder: Path) -> None:
    recording = record(recorder, memory_folder, "slots")
    moments = 0
    for seed in seeds:
        for where, found, promises in cuts(recording.log, seed):
            try:
                check(lay_out(found, memory_folder / "disk"), promises)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {where}") from error
            moments += 1
    assert moments > 200


def test_slots_hold_after_a_kill_at_every_effect(recorder: Path, memory_folder: Path, kills: int | None) -> None:
    assert kill_at_effects(recorder, memory_folder, "slots", kills=kills, check=check) >= (kills or 100)


def test_a_commit_that_does_not_sync_its_slot_is_caught(recorder: Path, memory_folder: Path) -> None:
    recording = record(recorder, memory_folder, "slots", "careless")

    def check_all() -> None:
        for _, found, promises in cuts(recording.log, 1):
            check(lay_out(found, memory_folder / "disk"), promises)

    with pytest.raises(AssertionError, match=r"not there|bytes are wrong"):
        check_all()
