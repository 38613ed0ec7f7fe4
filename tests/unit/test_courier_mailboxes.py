from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import Address
from services.courier.down.mailboxes import SPARE_ENTRIES, Limits, Mailboxes, Waiting

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


def test_letters_that_come_and_go_leave_nothing_behind() -> None:
    boxes = Mailboxes(LIMITS)
    kept = letter(1, expires=500_000.0)
    boxes.put(kept, 0.0)
    for sequence in range(2, 20_000):
        boxes.put(letter(sequence, expires=1e6 + sequence), float(sequence))
        boxes.got(A, [f"id{sequence}"], float(sequence))
        boxes.due(float(sequence), 10)
    assert len(boxes._expiries) <= SPARE_ENTRIES + 2
    assert len(boxes._schedule) <= SPARE_ENTRIES + 2
    assert boxes.expired(400_000.0) == []
    assert boxes.expired(600_000.0) == [kept]


def test_a_letter_found_at_start_is_tried_less_often() -> None:
    boxes = Mailboxes(LIMITS)
    boxes.put(letter(1), 0.0, attempts=1)
    assert sequences(boxes.due(0.0, 10)) == [1]
    assert boxes.next_wake() is None


def test_of_ten_thousand_devices_that_return_at_once_none_is_starved() -> None:
    """Half a minute of work is due at one moment; some never say got, and say hello without end."""
    rate, tick_s, letters = 2_000, 0.05, 3
    limits = Limits(letters=64, window=32, first_s=1.0, limit_s=60.0, attempts=8)
    honest = [Address("harbour", f"d{number}") for number in range(10_000)]
    greedy = [Address("harbour", f"g{number}") for number in range(50)]
    boxes, sequence, now = Mailboxes(limits), 0, 0.0
    for address in honest + greedy:
        for _ in range(letters if address.device[0] == "d" else limits.letters):
            sequence += 1
            boxes.put(letter(sequence, address=address), -1_000.0, attempts=1)
    boxes.due(-1_000.0, sequence)  # tried while nobody was there
    pauses = {address: 1.1 + 0.3 * (number % 7) for number, address in enumerate(honest)}
    again = dict(pauses)
    for address in greedy + honest:
        boxes.hello(address, now)
    done: dict[Address, float] = {}
    sent = 0
    while len(done) < len(honest):
        assert now < 60, f"{len(honest) - len(done)} devices are starved"
        for each in boxes.due(now, int(rate * tick_s)):
            sent += 1
            if each.address.device[0] == "d":
                boxes.got(each.address, [each.letter_id], now)
                if not boxes.of(each.address):
                    done[each.address] = now
        now += tick_s
        for address in greedy:
            boxes.hello(address, now)
        for address, at in [(address, at) for address, at in again.items() if at <= now and address not in done]:
            boxes.hello(address, now)
            again[address] = at + pauses[address]
    # First come, first served: what stood before the last of them is all that it waited for.
    assert list(done) == honest
    assert now <= (len(honest) * letters + len(greedy) * limits.window) / rate + tick_s
    assert sent <= len(honest) * letters + len(greedy) * limits.window * (now / limits.first_s + 1)


def test_a_hello_that_is_repeated_keeps_the_place_in_the_queue() -> None:
    boxes = Mailboxes(LIMITS)
    for sequence in range(1, 7):
        boxes.put(letter(sequence, address=A if sequence <= 3 else B), 0.0, attempts=1)
    boxes.due(0.0, 10)
    boxes.hello(A, 10.0)
    boxes.hello(B, 11.0)
    boxes.hello(A, 12.0)
    assert sequences(boxes.due(12.0, 10)) == [1, 2, 3, 4, 5, 6]


def test_hellos_without_end_have_a_letter_sent_no_more_often_than_the_first_pause() -> None:
    boxes, sent = filled(1), []
    for tick in range(100):
        now = 50.0 + tick / 10
        boxes.hello(A, now)
        sent += [now for _ in boxes.due(now, 10)]
    assert len(sent) == 10
    # A clock that was set back keeps nobody waiting.
    boxes.hello(A, 3.0)
    assert sequences(boxes.due(3.0, 10)) == [1]


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
    now += LIMITS.first_s
    for owner in (A, B):
        boxes.hello(owner, now)
        while due := [each for each in boxes.due(now, 100) if each.address == owner]:
            boxes.got(owner, [each.letter_id for each in due], now)
        assert boxes.of(owner) == []
