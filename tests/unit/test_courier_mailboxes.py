from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import Address
from services.courier.mailboxes import Limits, Mailboxes, Waiting

A, B = Address("harbour", "a"), Address("harbour", "b")
LIMITS = Limits(letters=8, window=3, first_s=1.0, limit_s=4.0, attempts=4)


def letter(sequence: int, *, address: Address = A, slot: str | None = None, expires: float = 1e9) -> Waiting:
    return Waiting(sequence, address, "recall", slot or f"s{sequence}", f"id{sequence}", expires)


def filled(count: int, limits: Limits = LIMITS) -> Mailboxes:
    boxes = Mailboxes(limits)
    for sequence in range(1, count + 1):
        boxes.put(letter(sequence), 0.0)
    return boxes


def sequences(letters: list[Waiting]) -> list[int]:
    return [each.sequence for each in letters]


def test_a_new_letter_is_due_at_once_and_again_with_doubling_pauses_until_it_rests() -> None:
    boxes, times = filled(1), []
    while (wake := boxes.next_wake()) is not None:
        times.append(wake)
        assert sequences(boxes.due(wake, 10)) == [1]
    assert times == [0.0, 1.0, 3.0, 7.0]
    boxes.hello(A, 100.0)
    assert sequences(boxes.due(100.0, 10)) == [1]


def test_a_window_is_on_its_way_and_got_lets_the_next_follow() -> None:
    boxes = filled(5)
    assert sequences(boxes.due(0.0, 10)) == [1, 2, 3]
    assert sequences(boxes.got(A, ["id2"], 0.5)) == [2]
    assert sequences(boxes.due(0.5, 10)) == [4]


def test_got_of_another_device_or_of_a_replaced_letter_says_nothing() -> None:
    boxes = Mailboxes(LIMITS)
    boxes.put(letter(1, slot="-"), 0.0)
    boxes.put(letter(2, slot="-"), 0.0)
    assert boxes.got(B, ["id2"], 0.0) == []
    assert boxes.got(A, ["id1"], 0.0) == []
    assert sequences(boxes.of(A)) == [2]
    assert sequences(boxes.due(0.0, 10)) == [2]


def test_too_many_letters_drop_the_oldest() -> None:
    boxes = filled(8)
    assert sequences(boxes.put(letter(9), 0.0)) == [1]
    assert sequences(boxes.of(A)) == list(range(2, 10))


def test_expired_letters_leave_once() -> None:
    boxes = Mailboxes(LIMITS)
    boxes.put(letter(1, expires=10.0), 0.0)
    boxes.put(letter(2, expires=5.0), 0.0)
    assert sequences(boxes.expired(7.0)) == [2]
    assert sequences(boxes.expired(20.0)) == [1]
    assert boxes.expired(30.0) == []
    assert len(boxes) == 0


def test_a_letter_found_at_start_is_tried_less_often() -> None:
    boxes = Mailboxes(LIMITS)
    boxes.put(letter(1), 0.0, attempts=1)
    assert sequences(boxes.due(0.0, 10)) == [1]
    assert boxes.next_wake() is None


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([A, B]), st.integers(min_value=0, max_value=4)),
        st.tuples(st.just("got"), st.sampled_from([A, B]), st.integers(min_value=1, max_value=40)),
        st.tuples(st.just("hello"), st.sampled_from([A, B]), st.just(0)),
        st.tuples(st.just("due"), st.just(A), st.integers(min_value=0, max_value=9)),
    ),
    max_size=60,
)


@given(ACTIONS)
def test_boxes_are_bounded_keep_the_newest_of_each_slot_and_send_at_most_a_window(
    actions: list[tuple[str, Address, int]],
) -> None:
    boxes, model, now, sequence = Mailboxes(LIMITS), {A: {}, B: {}}, 0.0, 0
    for action, address, number in actions:
        if action == "put":
            sequence += 1
            model[address].pop(f"s{number}", None)
            model[address][f"s{number}"] = sequence
            boxes.put(letter(sequence, address=address, slot=f"s{number}"), now)
        elif action == "got":
            held = sequences(boxes.got(address, [f"id{number}"], now))
            assert held == [n for n in model[address].values() if n == number]
            model[address] = {slot: n for slot, n in model[address].items() if n != number}
        elif action == "hello":
            boxes.hello(address, now)
        else:
            now += number
            due = boxes.due(now, 100)
            for owner in (A, B):
                mine = {each.sequence for each in due if each.address == owner}
                assert len(mine) <= LIMITS.window
                assert mine <= set(model[owner].values())
    for owner in (A, B):
        assert sequences(boxes.of(owner)) == sorted(model[owner].values())
    assert len(boxes) == len(model[A]) + len(model[B])
    # Nobody is forgotten: after a hello everything can be confirmed to the end.
    for owner in (A, B):
        boxes.hello(owner, now)
        while due := [each for each in boxes.due(now, 100) if each.address == owner]:
            boxes.got(owner, [each.letter_id for each in due], now)
        assert boxes.of(owner) == []
