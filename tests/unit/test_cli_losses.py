"""What `causeway device show` says of letters that were given up."""

from __future__ import annotations

from causeway.cli.device import given_up
from schemas.courier import Loss
from services.kit.api.registry import LossTotals


def lost(reason: str, letters: int) -> Loss:
    epoch = "01J00000000000000000000000"
    return Loss(epoch=epoch, lane="normal", first=4, last=6, reason=reason, letters=letters)


def test_numbers_that_were_no_letters_are_not_shown_as_given_up() -> None:
    totals = LossTotals(
        letters={"renumbered": 0, "evicted": 3}, maybe_arrived=1, newest=[lost("renumbered", 0), lost("evicted", 3)]
    )
    rows = given_up(totals)
    assert rows[:2] == [("letters given up: evicted", 3), ("of them maybe arrived", 1)]
    assert [name for name, _ in rows[2:]] == ["given up last"]
    assert "evicted" in str(rows[2][1])


def test_a_device_that_only_renumbered_lost_nothing() -> None:
    assert given_up(LossTotals(letters={"renumbered": 0}, newest=[lost("renumbered", 0)])) == []
    assert given_up(None) == []
