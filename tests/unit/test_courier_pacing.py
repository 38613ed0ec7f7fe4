from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import Address
from services.courier.pacing import Due, Pacer
from services.kit.rejects import RejectGate

A, B = Address("harbour", "a"), Address("harbour", "b")
EPOCHS = ("01A", "01B")


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B]), st.sampled_from(EPOCHS), st.floats(min_value=0, max_value=0.4)), max_size=60
    )
)
def test_every_ask_is_answered_within_the_interval_and_never_more_often(
    asks: list[tuple[Address, str, float]],
) -> None:
    pacer, now = Pacer(0.25), 0.0
    sent: dict[Address, list[float]] = {A: [], B: []}
    answered: dict[tuple[Address, str], float] = {}
    asked: list[tuple[Address, str, float]] = []

    def send(due: list[Due]) -> None:
        for each in due:
            answered[each.address, each.what] = now
        for address in {each.address for each in due}:
            sent[address].append(now)

    for address, epoch, pause in [*asks, (A, "", 1.0)]:
        until = now + pause
        while (wake := pacer.next_wake()) is not None and wake <= until:
            now = wake
            send(pacer.due(now))
        now = until
        for who, what, at in list(asked):
            if answered.get((who, what), -1.0) >= at:
                asked.remove((who, what, at))
            else:
                assert now - at <= 0.25 + 1e-9
        if epoch:
            asked.append((address, epoch, now))
            due = pacer.ask(address, epoch, now)
            send([due] if due else [])
    assert asked == []
    for times in sent.values():
        assert all(b - a >= 0.25 - 1e-9 for a, b in pairwise(times))


def test_the_first_goes_at_once_and_the_next_ones_ride_together() -> None:
    pacer = Pacer(0.25)
    assert pacer.ask(A, "01A", 10.0) == Due(A, "01A")
    assert pacer.ask(A, "01A", 10.1) is None
    assert pacer.ask(A, "01A", 10.2) is None
    assert pacer.due(10.2) == []
    assert pacer.due(10.25) == [Due(A, "01A")]
    assert pacer.due(10.5) == []
    assert pacer.next_wake() is None
    assert pacer.ask(A, "01A", 11.0) == Due(A, "01A")


def test_rejects_are_bounded_per_sender_and_reason() -> None:
    gate = RejectGate(2)
    assert [gate.allows("a", "expired", 1.0) for _ in range(3)] == [True, True, False]
    assert gate.allows("a", "malformed", 1.0)
    assert gate.allows("b", "expired", 1.0)
    assert gate.allows("a", "expired", 62.0)
