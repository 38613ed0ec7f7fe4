"""Small decisions of the courier: how fast a device may be, how far a mark may fall, and what operators type."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causeway.rejects import Rejected, Wanted, parse_since
from schemas.errors import MessageError
from schemas.ids import Address
from schemas.topics import Channel, Topic
from services.courier.integrity.recalls import floor_of_recall, present_epoch
from services.courier.up.errands import MAX_WAITING, Desk, Errands
from services.courier.up.marks import Marks
from services.courier.up.ordering import LaneKey
from services.courier.up.pace import WINDOW_S, Pace, sender_of
from services.kit.errors import NotFoundError, RefusedError
from services.kit.pipeline import PipelineError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(min_value=0, max_value=3)), max_size=200))
def test_no_sender_gets_more_than_its_share_of_a_window_and_none_is_hindered_by_another(
    arrivals: list[tuple[str, float]],
) -> None:
    pace, alone, now = Pace(600), Pace(600), 1_000.0
    taken: list[tuple[str, float]] = []
    for sender, pause in arrivals:
        now += pause
        # A device that is alone is judged the same as beside others.
        admitted = pace.admits(sender, now)
        if sender == "a":
            assert alone.admits("a", now) or not admitted or pause
        if admitted:
            taken.append((sender, now))
    for sender, at in taken:
        assert sum(s == sender and at <= other < at + WINDOW_S for s, other in taken) <= 2 * 10


def test_a_window_ends_and_a_clock_that_was_set_back_does_not_shut_anybody_out() -> None:
    pace = Pace(600)
    assert [pace.admits("a", 100.0) for _ in range(11)] == [True] * 10 + [False]
    assert pace.admits("b", 100.0)
    assert pace.admits("a", 100.0 + WINDOW_S)
    assert [pace.admits("a", 50.0) for _ in range(11)] == [True] * 10 + [False]


def test_a_letter_is_its_senders_by_its_subject() -> None:
    devices = [
        Address("harbour", "cam-1"),
        Address("harbour", "letter"),
        Address("letter", "a"),
        Address("letter", "b"),
    ]
    kinds = ("event", "sample")
    senders = {sender_of(Topic(device, Channel.LETTER, kind).subject) for device in devices for kind in kinds}
    assert len(senders) == len(devices)


COUNTS = st.integers(min_value=0, max_value=50)


@given(first=st.integers(min_value=1, max_value=60), held=COUNTS, before=COUNTS, more=st.integers(0, 5))
def test_a_mark_falls_to_what_is_wanted_and_never_below_what_is_held(
    first: int, held: int, before: int, more: int
) -> None:
    held, now = min(held, before), before + more
    target = floor_of_recall(first, held, before, now, force=False)
    assert target <= now
    assert target >= min(now, held)
    if more:
        # Letters came while IN was looked through.
        assert target == now
    elif held < first <= now:
        assert target == first - 1
    assert floor_of_recall(first, held, before, now, force=True) == min(now, first - 1)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("10min", NOW - timedelta(minutes=10)),
        ("1.5h", NOW - timedelta(hours=1.5)),
        ("3d", NOW - timedelta(days=3)),
        ("2026-02-28", datetime(2026, 2, 28, tzinfo=UTC)),
        ("2026-02-28T10:00:00+02:00", datetime(2026, 2, 28, 8, tzinfo=UTC)),
    ],
)
def test_moments_as_people_write_them(text: str, moment: datetime) -> None:
    assert parse_since(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "soon", "h", "-3d", "1e9d", "3 d"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="isoformat"):
        parse_since(text, NOW)


def test_rejects_are_chosen_by_device_reason_and_time() -> None:
    one = Rejected(
        id=1, time=NOW, service="courier", subject="", fleet="f", device="d", reason="expired", message="", bytes=0
    )
    hour = timedelta(hours=1)
    assert Wanted().fits(one)
    assert Wanted(device=Address("f", "d"), reason="expired", since=NOW - hour).fits(one)
    for wrong in (Wanted(device=Address("f", "e")), Wanted(reason="revoked"), Wanted(since=NOW + hour)):
        assert not wrong.fits(one)


async def test_errands_are_done_in_turn_and_each_caller_hears_how_it_went() -> None:
    errands, told = Errands(), []
    errands.on_put(lambda: told.append(1))

    async def never(*_: object) -> None:
        raise AssertionError

    desk = Desk(Marks(), lambda *_: None, never, never, never)  # type: ignore[arg-type, return-value]

    async def work(_: Desk) -> str:
        return "done"

    async def refuse(_: Desk) -> str:
        raise MessageError("no")

    async def lose(_: Desk) -> str:
        raise PipelineError("not answered")

    waiting = [asyncio.create_task(errands.ask(each)) for each in (work, refuse, lose, work)]
    await asyncio.sleep(0)
    assert len(told) == 4
    for _ in range(2):
        errand = errands.first()
        assert errand is not None
        await errands.run(errand, desk)
    # What became of a write is not known, so the intake must read IN again; the caller may ask again.
    errand = errands.first()
    assert errand is not None
    with pytest.raises(PipelineError):
        await errands.run(errand, desk)
    # Nobody waits for the last one any more.
    waiting[3].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert errands.first() is None
    assert [type(each).__name__ for each in results] == ["str", "MessageError", "PipelineError", "CancelledError"]

    many = [asyncio.create_task(errands.ask(work)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(RefusedError, match="too many"):
        await errands.ask(work)
    for task in many:
        task.cancel()
    await asyncio.gather(*many, return_exceptions=True)


def test_the_epoch_of_a_recall_is_the_one_in_which_the_device_speaks() -> None:
    cam, marks = Address("harbour", "cam-1"), Marks()
    own, refused = "01J00000000000000000000000", "01J00000000000000000000001"
    marks.stored(LaneKey("harbour", "cam-1", own, "control"), 1, 10)
    # A refused enrolment by another key, then letters that only a carrier brings: neither is a voice.
    marks.stored(LaneKey("harbour", "cam-1", refused, "control"), 1, 11)
    marks.stored(LaneKey("harbour", "cam-1", own, "normal"), 1, 12)
    assert present_epoch(marks, cam) == own
    with pytest.raises(NotFoundError, match="no letter of it ever came"):
        present_epoch(marks, Address("harbour", "cam-2"))
