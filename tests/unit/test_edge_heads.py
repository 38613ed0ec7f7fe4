"""Which marks of a receipt are about this outbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.letters.heads import foreign_marks
from edge_runtime.letters.outbox import Outbox
from edge_runtime.settings import OutboxLimits
from schemas.events import Lane, Untyped


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    made = Outbox(tmp_path / "outbox.db", OutboxLimits(), lambda: 1_000.0)
    yield made
    made.close()


def test_a_mark_counts_if_the_letter_there_is_the_one_that_was_written_here(outbox: Outbox) -> None:
    names = [outbox.add("sample", Untyped(), "normal") for _ in range(4)]
    heads: dict[Lane, str] = {"normal": names[2]}
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 3}, heads) == {}
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 3}, {"normal": names[1]}) == {"normal": 3}
    # Without a name the number alone decides, as ever.
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 3}, {}) == {}
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 5}, {}) == {"normal": 5}
    assert foreign_marks(outbox, outbox.lanes(), {"control": 1, "normal": 0}, {}) == {"control": 1}


@pytest.mark.parametrize("told", [False, True])
def test_a_letter_that_was_given_up_is_known_by_its_name_all_the_same(outbox: Outbox, told: bool) -> None:
    outbox.add("sample", Untyped(), "normal")
    gone = outbox.add("sample", Untyped(), "normal", latest="door")
    outbox.add("sample", Untyped(), "normal", latest="door")
    if told:
        assert outbox.report_losses()
    heads: dict[Lane, str] = {"normal": gone}
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 2}, heads) == {}
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 2}, {"normal": "another"}) == {"normal": 2}
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 2}, {}) == {}


def test_to_look_at_a_mark_sends_nothing(outbox: Outbox) -> None:
    outbox.add("sample", Untyped(), "normal", latest="door")
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 1}, {"normal": "another"}) == {"normal": 1}
    outbox.add("sample", Untyped(), "normal", latest="door")
    assert outbox.summary().superseded == 1


def test_what_was_receipted_before_is_not_doubted_again(outbox: Outbox) -> None:
    for _ in range(4):
        outbox.add("sample", Untyped(), "normal")
    outbox.receipt({"normal": 3})
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 3}, {"normal": "another"}) == {}
    assert foreign_marks(outbox, outbox.lanes(), {"normal": 2}, {"normal": "another"}) == {}
