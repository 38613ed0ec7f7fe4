from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench.stall import STALL_S, Probe, probing
from tests.support.platform import eventually


def test_a_slow_disk_is_seen_and_named_after_a_stall_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def slow(file: int) -> None:
        time.sleep(0.3)
        real(file)

    monkeypatch.setattr(os, "fsync", slow)
    with probing(tmp_path) as probe:
        eventually(lambda: probe.fsync_s, "a first fsync")
    found = probe.explain(STALL_S + 3)
    assert found["stall_s"] == STALL_S + 3
    assert found["longest_fsync_s"] >= 0.3
    assert probe.explain(STALL_S) == {}


def test_an_fsync_that_outlasts_the_measurement_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def slow(file: int) -> None:
        begun.append(file)
        time.sleep(0.3)

    monkeypatch.setattr(os, "fsync", slow)
    with probing(tmp_path) as probe:
        eventually(lambda: begun, "an fsync to begin")
    assert probe.fsync_s >= 0.3


def test_processors_that_are_taken_are_named() -> None:
    assert Probe(fsync_s=0.01, overslept_s=2.5).explain(4.25) == {
        "stall_s": 4.25,
        "longest_fsync_s": 0.01,
        "longest_overslept_s": 2.5,
    }
