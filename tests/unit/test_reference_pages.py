from __future__ import annotations

from pathlib import Path

import pytest

from causeway.reference import PAGES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_checked_in_page_is_fresh(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    assert (DOCS / name).read_text() == PAGES[name](), "stale: run `make docs`"
