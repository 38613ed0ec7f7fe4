from __future__ import annotations

import pytest

from bench import outbox as module
from bench.outbox import BATCH, measure


def test_every_contestant_stores_what_it_says_and_all_figures_are_there(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", 2)
    figures, extra = measure(tmp_path, 2 * BATCH)
    assert {"letters_per_s", "bytes_written_per_letter", "sqlite_per_s", "append_fsync_per_s"} <= figures.keys()
    assert all(value > 0 for name, value in figures.items() if name.endswith("_per_s"))
    # 5 batches of warm-up and rounds, of a payload of some 230 bytes.
    assert (tmp_path / "appended").stat().st_size == pytest.approx(5 * BATCH * 228, rel=0.05)
    assert set(extra["file_growth_per_letter"]) == {"outbox", "batched", "bare", "appended"}
