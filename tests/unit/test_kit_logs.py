from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from services.kit import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_standard_error_that_was_replaced_and_closed_stops_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", first)
    logs.configure("registry")
    log = structlog.get_logger()
    log.info("one")
    monkeypatch.setattr("sys.stderr", second)
    first.close()
    log.info("two")
    line = json.loads(second.getvalue())
    assert (line["event"], line["service"]) == ("two", "registry")
