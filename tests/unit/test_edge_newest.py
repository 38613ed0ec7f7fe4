"""Of all receipts the newest counts: those of the link are never old, those by carrier may be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.newest import LINK_STEP, NewestReceipt
from schemas.courier import Receipt
from schemas.events import DownLetter

BEGUN = 1_700_000_000_000_000


def receipt(revision: int, generation: int = 1) -> DownLetter[Receipt]:
    return DownLetter[Receipt].model_construct(generation=generation, revision=revision)


class Words:
    """A device's memory, on disk; `restart` keeps nothing else."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "inbox.sqlite"
        self.restart()

    def restart(self) -> None:
        self.inbox = Inbox(self._path, lambda: 0.0)
        self.newest = NewestReceipt(self.inbox)

    def carried(self, letter: DownLetter[Receipt]) -> bool:
        newer = self.newest.is_newer(letter)
        if newer:
            self.newest.by_carrier(letter)
        return newer


def test_what_was_heard_over_the_link_makes_older_ones_by_carrier_stale(tmp_path: Path) -> None:
    words = Words(tmp_path)
    assert words.carried(receipt(BEGUN))
    assert not words.carried(receipt(BEGUN)), "a second copy"
    words.newest.by_link(receipt(BEGUN + 10))
    assert not words.carried(receipt(BEGUN + 10))
    assert words.carried(receipt(BEGUN + 11))
    assert words.carried(receipt(5, generation=2)), "a newer key of the courier counts anew"
    assert not words.carried(receipt(BEGUN + 99))


def test_the_link_is_written_down_by_steps_and_a_restart_forgets_no_more_than_one(tmp_path: Path) -> None:
    words = Words(tmp_path)
    for revision in range(BEGUN, BEGUN + 3 * LINK_STEP + 1, LINK_STEP // 4):
        words.newest.by_link(receipt(revision))
    words.newest.by_link(receipt(BEGUN + 4 * LINK_STEP - 1))
    words.restart()
    assert not words.carried(receipt(BEGUN + 3 * LINK_STEP))
    assert words.carried(receipt(BEGUN + 3 * LINK_STEP + 1))


def test_one_that_lowered_a_mark_is_written_down_at_once(tmp_path: Path) -> None:
    words = Words(tmp_path)
    words.newest.by_link(receipt(BEGUN))
    words.newest.by_link(receipt(BEGUN + 2), lowers=True)
    words.newest.by_link(receipt(BEGUN + 1), lowers=True)
    words.restart()
    assert not words.carried(receipt(BEGUN + 2))
    assert words.carried(receipt(BEGUN + 3))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=20))
def test_what_counts_by_carrier_only_ever_rises(
    tmp_path_factory: pytest.TempPathFactory, words: list[tuple[bool, int]]
) -> None:
    memory, highest = Words(tmp_path_factory.mktemp("words")), 0
    for by_link, revision in words:
        if by_link:
            memory.newest.by_link(receipt(revision))
        else:
            assert memory.carried(receipt(revision)) == (revision > highest)
        highest = max(highest, revision)
    memory.inbox.close()
