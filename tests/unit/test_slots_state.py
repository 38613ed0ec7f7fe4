from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from edge_runtime.errors import InstallError
from edge_runtime.ota import state as core
from edge_runtime.ota.slots import Slots
from edge_runtime.ota.state import TRIES, Order, SlotState
from schemas.ota import Assign
from tests.support.device import NOW

DIGESTS = [letter * 64 for letter in "abc"]


def order(generation: int, revision: int, digest: str) -> Order:
    assign = Assign(
        model="digits",
        target="models/digits/1/model.onnx",
        version="1",
        sha256=digest,
        length=1,
        seq=1,
        action="install",
        rollout=str(ULID()),
        wave=0,
        deadline=NOW + timedelta(hours=1),
    )
    letter, accept, verdict = (str(ULID()) for _ in range(3))
    return Order(
        letter=letter,
        assign=assign,
        generation=generation,
        revision=revision,
        began=NOW,
        accept_id=accept,
        verdict_id=verdict,
    )


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 2), st.integers(0, 5)),
        st.tuples(st.just("try"), st.sampled_from(DIGESTS)),
        st.tuples(st.sampled_from(["spend", "commit", "confirm", "give_up"])),
        st.tuples(st.just("learn"), st.integers(0, 9)),
    ),
    max_size=40,
)


@given(STEPS)
def test_only_what_was_confirmed_is_served_without_a_trial(steps: list[tuple]) -> None:
    state = SlotState(slot="digits")
    proven: set[str] = set()
    loads = 0
    for step in steps:
        before = state
        with contextlib.suppress(InstallError):
            state = apply(state, step)
        if state.trial != before.trial:
            loads = 0
        loads += before.tries_left - state.tries_left == 1 and step[0] == "spend"
        if step[0] == "confirm" and state.digest is not None:
            proven.add(state.digest)
        assert loads <= TRIES
        assert state.floor >= before.floor
        assert (state.generation, state.revision) >= (before.generation, before.revision)
        if state.trial is None:
            assert state.digest is None or state.digest in proven
        assert state.previous is None or state.previous in proven
        assert SlotState.read(state.write()) == state


def apply(state: SlotState, step: tuple) -> SlotState:
    moves: dict[str, Callable[..., SlotState]] = {
        "take": lambda generation, revision: core.take(state, order(generation, revision, DIGESTS[0])),
        # The shell gives up an older trial when it takes a newer order.
        "try": lambda digest: core.try_out(core.give_up(state), digest) if digest != state.digest else state,
        "spend": lambda: core.spend(state) if state.trial else state,
        "commit": lambda: core.commit(state, NOW.date()),
        "confirm": lambda: core.confirm(state, 1.0) if state.trial in {None, state.digest} else state,
        "give_up": lambda: core.give_up(state),
        "learn": lambda floor: core.learn(state, floor, ()),
    }
    return moves[step[0]](*step[1:])


def test_activations_count_per_day() -> None:
    state = SlotState(slot="digits")
    for digest in DIGESTS:
        state = core.confirm(core.commit(core.try_out(state, digest), NOW.date()), None)
    assert core.activations_on(state, NOW.date()) == 3
    assert core.activations_on(state, NOW.date() + timedelta(days=1)) == 0
    assert state.kept == {DIGESTS[2], DIGESTS[1]}


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b'{"state": 1, "sha256": "0"}'])
def test_a_damaged_state_is_never_believed(tmp_path: Path, damage: bytes) -> None:
    slots = Slots(tmp_path)
    slots.store(SlotState(slot="digits", floor=3))
    assert slots.load("digits").floor == 3
    path = slots.state_file("digits")
    path.write_bytes(damage)
    with pytest.raises(InstallError, match=r"state\.json") as raised:
        slots.load("digits")
    assert raised.value.reason == "damaged_state"


def test_one_flipped_bit_is_seen(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    path = slots.state_file("digits")
    slots.store(SlotState(slot="digits", floor=3))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'floor\\":3', b'floor\\":1'))
    assert path.read_bytes() != whole
    with pytest.raises(InstallError, match="digest"):
        slots.load("digits")
