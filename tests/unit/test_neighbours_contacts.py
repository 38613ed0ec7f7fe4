from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.carriers.contacts import (
    LOST_AFTER,
    MAX_BACKOFF_S,
    MAX_CONTACTS,
    MIN_GAP_S,
    SOON_S,
    VISIT_S,
    Contacts,
)
from schemas.ids import Address

CAM, DOOR = Address("home", "cam"), Address("home", "door")
HERE, THERE = (("10.0.0.1", 1),), (("10.0.0.2", 2),)


def contacts(interval_s: float = 30.0) -> Contacts:
    return Contacts(interval_s, random.Random(5))


def test_a_new_peer_is_called_soon_and_then_at_the_interval() -> None:
    book = contacts()
    book.sight("cam", HERE, CAM, 100.0, fixed=False)
    assert 100.0 <= (book.next_due() or 0) <= 100.0 + SOON_S
    assert book.due(100.0 + SOON_S) == ["cam"]
    book.calling("cam", 101.0)
    book.met(CAM, 102.0, "cam")
    assert book.due(102.0 + 14.9) == []
    assert book.due(102.0 + 45.0) == ["cam"]


def test_a_meeting_counts_whoever_called() -> None:
    book = contacts()
    book.sight("cam", HERE, CAM, 0.0, fixed=False)
    book.met(CAM, 0.5)
    assert book.due(15.0) == []


def test_news_brings_calls_soon_but_not_on_whoever_brought_it() -> None:
    book = contacts(3_600.0)
    for name, address in (("cam", CAM), ("door", DOOR)):
        book.sight(name, HERE, address, 0.0, fixed=False)
        book.calling(name, 0.0)
        book.met(address, 0.0, name)
    book.news(100.0, but=CAM)
    assert book.due(100.0 + SOON_S) == ["door"]
    book.news(100.0)
    assert set(book.due(100.0 + SOON_S)) == {"cam", "door"}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_no_flood_of_news_calls_twice_within_the_gap(pauses: list[float]) -> None:
    book, now, calls = contacts(1.0), 0.0, []
    book.sight("cam", HERE, CAM, now, fixed=False)
    for pause in pauses:
        now += pause
        book.news(now)
        if book.due(now):
            book.calling("cam", now)
            calls.append(now)
            # Nothing but news may bring a call before its time.
            book._contacts["cam"].due = now + 1_000.0
    assert all(later - earlier >= MIN_GAP_S for earlier, later in itertools.pairwise(calls))


def test_who_never_answers_is_called_ever_more_rarely_and_is_not_in_sight() -> None:
    book, now = contacts(), 0.0
    book.sight("cam", HERE, CAM, now, fixed=False)
    assert set(book.in_sight(now)) == {CAM}
    for count in range(1, 30):
        now = book.next_due() or 0.0
        book.calling("cam", now)
        book.failed("cam", now)
        assert MIN_GAP_S <= (book.next_due() or 0.0) - now <= MAX_BACKOFF_S
        assert set(book.in_sight(now)) == (set() if count >= LOST_AFTER else {CAM})
    book.news(now)
    assert (book.next_due() or 0.0) >= now + MIN_GAP_S, "news do not help who is not there"
    book.sight("cam", THERE, CAM, now, fixed=False)
    assert book.due(now + SOON_S) == ["cam"], "at another place it may answer"


def test_strangers_cannot_crowd_out_who_was_met() -> None:
    book = contacts()
    book.sight("cam", HERE, CAM, 0.0, fixed=False)
    book.met(CAM, 0.0, "cam")
    for n in range(3 * MAX_CONTACTS):
        name = f"stranger-{n}"
        book.sight(name, THERE, Address("home", name), 1.0, fixed=False)
        if book.get(name) is not None and n % 2:
            book.failed(name, 1.0)
    assert len(book) == MAX_CONTACTS
    assert book.turned_away > 0
    assert book.get("cam") is not None
    assert len(set(book.in_sight(2.0))) <= MAX_CONTACTS


def test_a_goodbye_ends_a_contact_but_not_one_of_the_settings() -> None:
    book = contacts()
    book.sight("cam", HERE, CAM, 0.0, fixed=False)
    book.sight("10.0.0.2:2", THERE, None, 0.0, fixed=True)
    assert set(book.in_sight(0.0)) == {CAM}, "nobody was met at the place of the settings yet"
    book.met(DOOR, 0.0, "10.0.0.2:2")
    assert set(book.in_sight(0.0)) == {CAM, DOOR}
    book.lose("cam")
    book.lose("10.0.0.2:2")
    book.lose("nobody")
    assert set(book.in_sight(0.0)) == {DOOR}
    book.forget_announced()
    assert book.get("10.0.0.2:2") is not None


def test_a_visitor_is_in_sight_for_a_while() -> None:
    book = contacts()
    book.met(CAM, 0.0)
    assert set(book.in_sight(VISIT_S - 1)) == {CAM}
    assert set(book.in_sight(VISIT_S)) == set()
