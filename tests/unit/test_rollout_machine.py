from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from schemas.ota import Gates, Report
from services.kit.api.ota import RolloutView
from services.kit.errors import RefusedError
from services.ota import rollout as core
from services.ota.rollout import SETTLED, AssignTo, CallSilent, Finish, Halt, Head, OpenWave, Rollout, Turn
from services.ota.settings import CATCH_UP, MAX_APPLIED
from services.ota.views import counts, view

START = datetime(2026, 3, 1, tzinfo=UTC)
KEY = "01J00000000000000000000000"
RIGHT, WRONG = "a" * 64, "b" * 64
DEADLINE_S = 60.0


def rollout(placed: dict[str, int], *, ratio: float = 0.0) -> Rollout:
    head = Head(
        rollout=KEY,
        model="digits",
        version="1.0.0",
        target="models/digits/1.0.0/model.onnx",
        sha256=RIGHT,
        length=10,
        seq=1,
        fleet="harbour",
        gates=Gates(),
        waves=max(placed.values()) + 1,
        deadline_s=DEADLINE_S,
        max_failed_ratio=ratio,
    )
    return Rollout(head, {d: Turn(device=d, wave=w, letter=str(ULID())) for d, w in placed.items()})


def report(
    step: str = "confirm", outcome: str = "ok", running: str | None = RIGHT, reason: str | None = None
) -> Report:
    fields = {"step": step, "outcome": outcome, "running_sha256": running, "reason": reason}
    return Report.model_validate(fields | {"rollout": KEY, "model": "digits", "revision": 1, "took_s": 1})


def settle(state: Rollout, now: datetime) -> Rollout:
    """Carry out whatever is planned, as the service does; it must come to an end."""
    for _ in range(100):
        actions = core.plan(state, now)
        if not actions:
            return state
        for action in actions:
            state = core.carry_out(state, action)
    raise AssertionError("the plan never came to an end")


def states(state: Rollout) -> dict[str, str]:
    return {name: turn.state for name, turn in state.turns.items()}


EVENTS = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 90)),
    st.tuples(
        st.just("report"),
        st.integers(0, 5),
        st.sampled_from(
            [
                ("confirm", "ok", RIGHT),
                ("confirm", "ok", WRONG),
                ("confirm", "ok", None),
                ("accept", "ok", WRONG),
                ("commit", "ok", RIGHT),
                ("accept", "waiting", None),
                ("smoke", "failed", None),
                ("accept", "refused", None),
            ]
        ),
        st.integers(0, 12),
    ),
)
LETTERS = [str(ULID()) for _ in range(13)]


def check_laws(before: Rollout, state: Rollout, confirmed: set[str]) -> None:
    for name, turn in state.turns.items():
        if turn.state in {"succeeded", "late"}:
            assert name in confirmed
            assert turn.running_sha256 == RIGHT
        if before.turns[name].state in {"succeeded", "late", "failed"}:
            assert turn.state == before.turns[name].state
        assert len(set(turn.applied)) == len(turn.applied) <= MAX_APPLIED
        if turn.wave > state.head.wave:
            assert turn.state == "pending"
        if turn.wave < state.head.wave:
            assert turn.state in SETTLED
    assert sum(counts(state).values()) == len(before.turns)
    if state.head.state == "done":
        assert all(turn.state in SETTLED for turn in state.turns.values())
    if before.head.state != "running":
        assert state.head == before.head


@given(
    st.lists(EVENTS, max_size=40),
    st.lists(st.sampled_from([0.2, 0.5, 2.0, 3.0, 1.0]), max_size=3).map(lambda found: [*sorted(found), 1.0]),
    st.sampled_from([0.0, 0.34, 1.0]),
)
def test_success_needs_the_devices_own_report_and_waves_keep_their_order(
    events: list[tuple], waves: list[float], ratio: float
) -> None:
    names = [f"cam-{n}" for n in range(6)]
    try:
        placed = core.split(names, waves, "cam-3", "seed")
    except RefusedError:
        return
    now = START
    state = settle(rollout(placed, ratio=ratio), now)
    confirmed: set[str] = set()
    for event in events:
        before = state
        if event[0] == "wait":
            now += timedelta(seconds=event[1])
        else:
            name, (step, outcome, running), letter = names[event[1]], event[2], LETTERS[event[3]]
            told = report(step, outcome, running)
            state = core.apply_report(state, name, told, letter, now)
            assert core.apply_report(state, name, told, letter, now) is state
            if (step, outcome, running) == ("confirm", "ok", RIGHT):
                confirmed.add(name)
        state = settle(state, now)
        check_laws(before, state, confirmed)
    if ratio == 0.0 and state.head.state == "done":
        assert set(states(state).values()) == {"succeeded"}


@given(
    st.integers(1, 40),
    st.lists(st.one_of(st.floats(0.01, 0.99), st.integers(2, 50).map(float)), max_size=4),
    st.integers(0, 39),
)
def test_every_device_is_in_exactly_one_wave_and_the_canary_in_the_first(
    size: int, shares: list[float], canary: int
) -> None:
    names = [f"cam-{n}" for n in range(size)]
    chosen = names[canary % size]
    try:
        placed = core.split(names, [*shares, 1.0], chosen, "seed")
    except RefusedError:
        return
    assert sorted(placed) == sorted(names)
    assert placed[chosen] == 0
    assert set(placed.values()) == set(range(max(placed.values()) + 1))


def test_shares_count_cumulatively_and_are_rounded_up() -> None:
    names = [f"cam-{n}" for n in range(10)]
    placed = core.split(names, [0.1, 0.25, 5, 1.0], None, "seed")
    assert [list(placed.values()).count(wave) for wave in range(4)] == [1, 2, 2, 5]


@pytest.mark.parametrize(
    ("waves", "problem"),
    [
        ([0.5], "the last must be 1.0"),
        ([0.5, 0.2, 1.0], "must rise"),
        ([0.0, 1.0], "use shares"),
        ([1.5, 1.0], "use shares"),
        ([-1.0, 1.0], "use shares"),
    ],
)
def test_waves_that_make_no_sense_are_refused(waves: list[float], problem: str) -> None:
    with pytest.raises(RefusedError, match=problem):
        core.split(["a", "b", "c"], waves, None, "seed")


def test_a_canary_that_is_not_among_the_devices_is_refused() -> None:
    with pytest.raises(RefusedError, match="canary zz is not among the 2 devices"):
        core.split(["a", "b"], [1.0], "zz", "seed")


def test_the_second_wave_waits_for_the_first() -> None:
    state = rollout({"a": 0, "b": 1})
    assert core.plan(state, START) == [OpenWave(0, START + timedelta(seconds=60))]
    state = settle(state, START)
    assert states(state) == {"a": "assigned", "b": "pending"}
    state = settle(core.apply_report(state, "a", report(), LETTERS[0], START), START)
    assert (state.head.wave, states(state)) == (1, {"a": "succeeded", "b": "assigned"})
    state = core.apply_report(state, "b", report(), LETTERS[1], START)
    assert core.plan(state, START) == [Finish()]


def test_one_failure_too_many_halts_at_once_and_says_who() -> None:
    state = settle(rollout({"a": 0, "b": 0, "c": 1}, ratio=0.4), START)
    state = core.apply_report(state, "a", report("smoke", "failed", None, "smoke_mismatch"), LETTERS[0], START)
    [halt] = core.plan(state, START)
    assert isinstance(halt, Halt)
    assert "1 of 2 devices" in halt.reason
    assert "a failed (smoke_mismatch)" in halt.reason
    state = core.carry_out(state, halt)
    assert states(core.apply_report(state, "b", report(), LETTERS[1], START))["b"] == "succeeded"
    assert core.plan(state, START + timedelta(days=9)) == []


def test_silence_is_failure_but_a_device_of_the_last_wave_catches_up() -> None:
    state = settle(rollout({"a": 0, "b": 0}, ratio=0.5), START)
    state = core.apply_report(state, "a", report(), LETTERS[0], START)
    later = START + timedelta(seconds=DEADLINE_S + 1)
    assert core.plan(state, later, judge_silence=False) == []
    assert core.plan(state, later) == [CallSilent(("b",))]
    state = settle(state, later)
    assert (state.head.state, states(state)["b"]) == ("done", "silent")
    assert state.begin_by(0) == START + timedelta(seconds=60) + CATCH_UP
    state = core.apply_report(state, "b", report(), LETTERS[1], later)
    assert states(state)["b"] == "late"


def test_a_report_that_was_stored_in_time_counts_in_time() -> None:
    state = settle(rollout({"a": 0}, ratio=1.0), START)
    state = settle(state, START + timedelta(minutes=5))
    assert states(state)["a"] == "silent"
    assert states(core.apply_report(state, "a", report(), LETTERS[0], START))["a"] == "succeeded"


def test_a_device_that_runs_something_else_has_failed() -> None:
    state = core.apply_report(settle(rollout({"a": 0}), START), "a", report(running=WRONG), LETTERS[0], START)
    assert (state.turns["a"].state, state.turns["a"].reason) == ("failed", "wrong_digest")


def test_an_early_wave_may_not_begin_after_its_deadline() -> None:
    state = settle(rollout({"a": 0, "b": 1}), START)
    assert state.begin_by(0) == START + timedelta(seconds=DEADLINE_S)


def test_a_service_that_slept_through_a_wave_asks_before_it_judges() -> None:
    state = core.carry_out(rollout({"a": 0}), OpenWave(0, START))
    later = START + timedelta(hours=1)
    assert core.plan(state, later) == [OpenWave(0, later + timedelta(seconds=DEADLINE_S))]
    assert core.plan(core.carry_out(state, core.plan(state, later)[0]), later) == [AssignTo(("a",))]


def test_abort_leaves_the_rest_alone_and_is_said_once() -> None:
    state = core.abort(settle(rollout({"a": 0, "b": 1}), START), "by hand")
    assert (state.head.state, states(state)["b"]) == ("aborted", "pending")
    with pytest.raises(RefusedError, match="it is aborted already"):
        core.abort(state, "again")


def test_chatter_never_costs_the_verdict_its_place() -> None:
    state = settle(rollout({"a": 0}), START)
    for _ in range(50):
        state = core.apply_report(state, "a", report("accept", "waiting", None, "battery"), str(ULID()), START)
    state = core.apply_report(state, "a", report(), LETTERS[0], START)
    assert (state.turns["a"].state, len(state.turns["a"].applied)) == ("succeeded", MAX_APPLIED)


def test_a_view_of_a_huge_rollout_fits_the_bus_and_its_counts_are_whole() -> None:
    state = settle(rollout({f"cam-{n}": 0 for n in range(9_000)}), START)
    state = core.apply_report(state, "cam-7", report("smoke", "failed", None, "smoke_mismatch"), LETTERS[0], START)
    shown = RolloutView.model_validate(view(state))
    assert len(shown.model_dump_json()) < 1_000_000
    assert shown.counts == {"assigned": 8_999, "failed": 1}
    assert any(progress.device == "cam-7" for progress in shown.devices)
    assert view(state, devices=False)["devices"] == []
