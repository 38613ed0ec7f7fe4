"""The life of a task: terms, deadlines, results, and what the fold of them tells of a device."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from schemas.errors import MessageError
from schemas.ids import Address
from schemas.scheduler import Result
from services.kit.api.scheduler import Reason, SubmitRequest
from services.scheduler.answers import fit
from services.scheduler.leases import (
    GRACE_S,
    MAX_STALE_KNOWN,
    TaskRecord,
    Verdict,
    apply_result,
    expire,
    grant,
    hold,
)
from services.scheduler.placement import Placer
from services.scheduler.planning import plan
from services.scheduler.tracks import Tracks
from tests.unit.test_placement_scores import node

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHY = (Reason(device="cam-1", score=1.0, why="best"),)


def new_id() -> str:
    return str(ULID())


def record(**changes: Any) -> TaskRecord:
    request = SubmitRequest.model_validate(
        {"kind": "diagnose", "runner": "profile@1", "fleet": "harbour", "deadline_s": 60, "max_terms": 3} | changes
    )
    return TaskRecord(task=new_id(), group=new_id(), request=request, created=NOW)


def result(task: TaskRecord, term: int, outcome: str = "ok", **changes: Any) -> Result:
    values = {"task": task.task, "term": term, "outcome": outcome, "took_s": 1.0, "cpu_s": 0.5}
    return Result.model_validate(values | changes)


def device(name: str) -> Address:
    return Address("harbour", name)


def leased(task: TaskRecord, name: str = "cam-1", now: datetime = NOW) -> TaskRecord:
    return grant(task, name, WHY, new_id(), now)


def test_a_result_of_the_present_term_is_applied_once() -> None:
    task = leased(record())
    ruling = apply_result(task, device("cam-1"), "letter-1", result(task, 1))
    assert ruling.verdict is Verdict.APPLIED
    assert ruling.record.state == "done"
    again = apply_result(ruling.record, device("cam-1"), "letter-1", result(task, 1))
    assert again.verdict is Verdict.REPEATED
    assert again.record == ruling.record


def test_a_second_letter_for_the_same_term_is_counted_and_not_applied() -> None:
    task = leased(record())
    done = apply_result(task, device("cam-1"), "letter-1", result(task, 1)).record
    other = apply_result(done, device("cam-1"), "letter-2", result(task, 1))
    assert other.verdict is Verdict.STALE
    assert other.record.stale_results == 1
    assert [applied.letter for applied in other.record.results] == ["letter-1"]


def test_silence_ends_the_lease_after_deadline_and_grace_and_not_before() -> None:
    task = leased(record())
    assert task.lease is not None
    end = task.lease.deadline + timedelta(seconds=GRACE_S)
    assert expire(task, end - timedelta(microseconds=1)) is None
    ended = expire(task, end)
    assert ended is not None
    assert ended.state == "queued"
    assert "cam-1 said nothing" in str(ended.reason)
    assert ended.tried == {"cam-1"}


def test_a_late_result_of_an_older_term_is_counted_and_not_applied() -> None:
    task = leased(record())
    assert task.lease is not None
    expired = expire(task, task.lease.deadline + timedelta(seconds=GRACE_S))
    assert expired is not None
    second = leased(expired, "cam-2", NOW + timedelta(seconds=70))
    late = apply_result(second, device("cam-1"), "late", result(task, 1))
    assert late.verdict is Verdict.STALE
    assert late.record.state == "leased"
    assert late.record.results == []
    assert apply_result(late.record, device("cam-1"), "late", result(task, 1)).verdict is Verdict.REPEATED
    done = apply_result(late.record, device("cam-2"), "good", result(task, 2)).record
    assert done.state == "done"
    assert [applied.term for applied in done.results] == [2]


def test_a_late_result_counts_while_no_newer_term_began() -> None:
    task = leased(record())
    assert task.lease is not None
    expired = expire(task, task.lease.deadline + timedelta(seconds=GRACE_S))
    assert expired is not None
    assert apply_result(expired, device("cam-1"), "late", result(task, 1)).record.state == "done"


@pytest.mark.parametrize("outcome", ["refused", "failed"])
def test_a_device_that_could_not_gives_the_task_to_the_next_term(outcome: str) -> None:
    task = leased(record(max_terms=2))
    first = apply_result(task, device("cam-1"), "one", result(task, 1, outcome, reason="battery"))
    assert first.verdict is Verdict.APPLIED
    assert first.record.state == "queued"
    second = leased(first.record, "cam-2")
    last = apply_result(second, device("cam-2"), "two", result(task, 2, outcome)).record
    assert last.state == "failed"
    assert "no term of 2 is left" in str(last.reason)
    assert [applied.letter for applied in last.results] == ["one", "two"]


def test_a_result_that_answers_no_lease_of_its_sender_is_refused() -> None:
    task = leased(record())
    with pytest.raises(MessageError, match="cam-1 held it") as refused:
        apply_result(task, device("cam-2"), "letter", result(task, 1))
    assert refused.value.reason == "not_leased"
    with pytest.raises(MessageError) as refused:
        apply_result(task, Address("office", "cam-1"), "letter", result(task, 1))
    assert refused.value.reason == "not_leased"
    with pytest.raises(MessageError) as refused:
        apply_result(task, device("cam-1"), "letter", result(task, 2))
    assert refused.value.reason == "unknown_term"


def test_the_memory_of_stale_letters_is_bounded() -> None:
    task = leased(record())
    task = apply_result(task, device("cam-1"), "good", result(task, 1)).record
    for index in range(MAX_STALE_KNOWN + 10):
        task = apply_result(task, device("cam-1"), f"stale-{index}", result(task, 1)).record
    assert len(task.stale) == MAX_STALE_KNOWN
    assert task.stale_results == MAX_STALE_KNOWN + 10


def test_a_task_that_nobody_takes_fails_in_the_end() -> None:
    task = record(deadline_s=60, max_terms=2)
    waiting = hold(task, WHY, NOW + timedelta(seconds=119))
    assert waiting.state == "queued"
    assert hold(waiting, WHY, NOW + timedelta(seconds=120)).state == "failed"


steps = st.lists(st.sampled_from(["lease", "ok", "failed", "refused", "late", "repeat", "tick"]), max_size=40)


@given(steps)
def test_whatever_happens_a_task_is_done_at_most_once_and_terms_only_rise(happenings: list[str]) -> None:
    task, now, letters = record(max_terms=4), NOW, ["none"]
    terms = [0]
    for step in happenings:
        now += timedelta(seconds=20)
        before = task
        if step == "lease" and task.state == "queued":
            task = leased(task, f"cam-{task.term}", now)
        elif step in {"ok", "failed", "refused"} and task.attempts:
            letters.append(new_id())
            sender = device(task.attempts[-1].device)
            task = apply_result(task, sender, letters[-1], result(task, task.term, step)).record
        elif step == "late" and len(task.attempts) > 1:
            task = apply_result(task, device(task.attempts[0].device), new_id(), result(task, 1)).record
        elif step == "repeat" and len(letters) > 1:
            sender = device(task.attempts[-1].device)
            known = apply_result(task, sender, letters[-1], result(task, task.term))
            assert known.record == task
        elif step == "tick":
            task = expire(task, now) or task
        terms.append(task.term)
        assert before.state not in {"done", "failed"} or task.state == before.state
    assert terms == sorted(terms)
    assert task.term <= 4
    assert sum(applied.outcome == "ok" for applied in task.results) == (task.state == "done")
    assert len({applied.term for applied in task.results}) == len(task.results)


def test_a_plan_leases_what_it_can_and_says_why_the_rest_waits() -> None:
    placer = Placer([node("cam-1"), node("cam-2", battery_percent=10.0)])
    tasks = [record(), record(runner="evaluate@1"), record(runner="evaluate@1")]
    changed = plan(tasks, placer, NOW, new_id)
    assert [task.state for task in changed] == ["leased", "queued", "queued"]
    assert changed[0].attempts[0].device == "cam-1"
    assert changed[0].reasons[1].why.startswith("battery 10 %")
    assert {reason.why for reason in changed[1].reasons} == {"runner evaluate@1 is not installed"}
    assert plan(changed[1:], placer, NOW, new_id) == []


def test_the_record_tells_the_letter() -> None:
    task = leased(record(inputs={"model": "digits"}))
    assert task.lease is not None
    data = task.letter(task.lease)
    assert (data.task, data.term, data.runner, data.deadline) == (task.task, 1, "profile@1", task.lease.deadline)
    assert TaskRecord.model_validate_json(task.model_dump_json(exclude_defaults=True)) == task


def test_tracks_follow_results_silence_and_speed() -> None:
    tracks = Tracks()
    task = leased(record())
    tracks.change(None, task)
    assert tracks.get(device("cam-1")).failed == 0
    assert task.lease is not None
    silent = expire(task, task.lease.deadline + timedelta(seconds=GRACE_S))
    assert silent is not None
    tracks.change(task, silent)
    assert tracks.get(device("cam-1")).failed == 1
    second = leased(silent, "cam-2")
    tracks.change(silent, second)
    output = {"gflops": 40.0, "sha256_mb_s": 1_000.0}
    done = apply_result(second, device("cam-2"), "letter", result(task, 2, output=output)).record
    tracks.change(second, done)
    assert tracks.get(device("cam-2")).succeeded == 1
    assert tracks.get(device("cam-2")).speed == pytest.approx(2.0)
    refused = apply_result(leased(record()), device("cam-1"), "no", result(done, 1, "refused")).record
    tracks.change(None, refused)
    assert tracks.get(device("cam-1")).failed == 1


def test_answers_fit_into_a_message() -> None:
    reasons = [Reason(device=f"cam-{index}", score=1.0, why="x" * 100) for index in range(17)]
    views = [leased(record()).view().model_copy(update={"reasons": reasons, "device": "cam-0"}) for _ in range(100)]
    assert len(fit(views)[0]["reasons"]) == 17
    shorter = fit(views, 60_000)
    assert len(shorter) == 100
    assert [reason["device"] for reason in shorter[0]["reasons"]] == ["cam-0"]
    assert all(not view["reasons"] for view in fit(views, 30_000))
    assert 0 < len(fit(views, 5_000)) < 100
    assert fit([], 10) == []
