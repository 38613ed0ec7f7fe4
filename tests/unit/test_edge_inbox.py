from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from edge_runtime.clock import FlooredClock
from edge_runtime.letters import inbox as module
from edge_runtime.letters.admission import Admission, Order, admit
from edge_runtime.letters.inbox import Inbox
from schemas.events import DownLetter
from schemas.registry import Twin

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Time:
    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


def letter(revision: int, *, generation: int = 1, slot: str = "-", letter_id: str | None = None) -> DownLetter[Twin]:
    own = letter_id or str(ULID())
    return DownLetter[Twin](
        id=own,
        source="/services/registry",
        type="causeway.config.v1",
        time=NOW,
        data=Twin(),
        platform="01J00000000000000000000000",
        recipient="/fleets/home/devices/cam-1",
        expires=NOW + timedelta(hours=1),
        generation=generation,
        revision=revision,
        slot=own if slot == "own" else slot,
    )


@pytest.fixture
def clock():
    return Time()


@pytest.fixture
def inbox(tmp_path, clock):
    made = Inbox(tmp_path / "inbox.db", clock)
    yield made
    made.close()


orders = st.builds(Order, st.integers(0, 3), st.integers(0, 5))


@given(st.lists(orders, max_size=30))
def test_in_one_slot_only_ever_newer_letters_are_taken(arrivals: list[Order]) -> None:
    newest, taken = None, []
    for order in arrivals:
        if admit(order, newest, own_slot=False, seen=order in taken) is Admission.NEW:
            newest = order
            taken.append(order)
    assert taken == sorted(set(taken))


@given(st.lists(st.integers(0, 5), max_size=20))
def test_a_letter_that_is_its_own_slot_is_taken_once(ids: list[int]) -> None:
    seen: set[int] = set()
    for number in ids:
        verdict = admit(Order(1, 1), Order(9, 9), own_slot=True, seen=number in seen)
        assert (verdict is Admission.NEW) == (number not in seen)
        seen.add(number)


def test_a_newer_generation_beats_any_revision_of_the_old(inbox) -> None:
    inbox.take(letter(2**53), "config", b"x", "k1")
    assert inbox.judge(letter(1, generation=2), "config") is Admission.NEW
    assert inbox.judge(letter(5), "config") is Admission.REPLAYED


def test_a_letter_that_was_taken_is_known_even_after_a_restart(tmp_path, clock) -> None:
    inbox = Inbox(tmp_path / "a.db", clock)
    first, own = letter(3), letter(4, slot="own")
    for taken in (first, own):
        inbox.take(taken, "config", b"envelope", "k1")
    inbox.handled(own.id)
    inbox.close()
    inbox = Inbox(tmp_path / "a.db", clock)
    assert inbox.judge(first, "config") is Admission.KNOWN
    assert inbox.judge(own, "config") is Admission.KNOWN
    assert [held.id for held in inbox.held()] == [first.id]
    assert set(inbox.newest_ids(5)) == {first.id, own.id}
    inbox.close()


def test_ids_are_kept_until_the_letter_cannot_come_again(inbox, clock, monkeypatch) -> None:
    old, held = letter(1, slot="own"), letter(2, slot="own")
    for taken in (old, held):
        inbox.take(taken, "task", b"e", "k1")
    inbox.handled(old.id)
    clock.now += 25 * 3_600 - 1
    inbox.trim()
    assert old.id in inbox.newest_ids(9)
    clock.now += 2
    inbox.trim()
    assert inbox.newest_ids(9) == [held.id]
    monkeypatch.setattr(module, "MAX_IDS", 3)
    clock.now = NOW.timestamp()
    for number in range(6):
        one = letter(number, slot="own")
        inbox.take(one, "task", b"e", "k1")
        inbox.handled(one.id)
    inbox.trim()
    assert len(inbox.newest_ids(99)) == 4


def test_unhandled_letters_are_bounded(inbox, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 2)
    assert not inbox.full()
    for number in range(2):
        inbox.take(letter(number, slot="own"), "task", b"e", "k1")
    assert inbox.full()


def test_time_proven_by_a_key_goes_with_the_key(inbox) -> None:
    assert inbox.time_floor() is None
    inbox.prove("old", 1, NOW + timedelta(days=900))
    inbox.prove("new", 2, NOW)
    assert inbox.time_floor() == NOW + timedelta(days=900)
    inbox.keep_floors({"new"})
    assert inbox.time_floor() == NOW
    inbox.prove("new", 2, NOW + timedelta(seconds=30))
    assert inbox.time_floor() == NOW
    inbox.prove("new", 2, NOW + timedelta(seconds=61))
    assert inbox.time_floor() == NOW + timedelta(seconds=61)


@pytest.mark.parametrize(
    ("system", "synchronised", "expected"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), False, NOW),
        (datetime(1970, 1, 1, tzinfo=UTC), True, datetime(1970, 1, 1, tzinfo=UTC)),
        (NOW + timedelta(days=1), False, NOW + timedelta(days=1)),
    ],
)
def test_a_clock_that_nobody_sets_is_at_least_the_floor(system, synchronised, expected) -> None:
    clock = FlooredClock(lambda: NOW, system.timestamp, lambda: synchronised)
    assert clock.now() == expected


def test_the_kernel_is_asked_for_real() -> None:
    assert FlooredClock(lambda: None).synchronised() in {True, False}
