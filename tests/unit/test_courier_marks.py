from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import Address
from services.courier.up.marks import MAX_EPOCHS, InState, Marks, SavedDevice, SavedPoint, base
from services.courier.up.ordering import Gap, LaneKey

ADDRESS = Address("harbour", "cam-1")
EPOCH = "01J00000000000000000000000"
LANE = LaneKey("harbour", "cam-1", EPOCH, "normal")
LANES = [LaneKey("harbour", f"cam-{n}", EPOCH, lane) for n in (1, 2) for lane in ("normal", "control")]


@dataclass
class World:
    """IN and the bucket of marks, as a courier writes them and a bad server forgets them."""

    stream: list[tuple[LaneKey, int]] = field(default_factory=list)
    first: int = 1
    saved: dict[Address, SavedDevice] = field(default_factory=dict)
    point: SavedPoint | None = None
    marks: Marks = field(default_factory=Marks)

    def letter(self, key: LaneKey) -> None:
        sequence = self.marks.flat.get(key, 0) + 1
        self.stream.append((key, sequence))
        self.marks.stored(key, sequence, len(self.stream))

    def save(self) -> None:
        self.saved |= self.marks.take_changed({})
        if self.stream:
            self.point = SavedPoint(sequence=len(self.stream), message_id=self.id_at(len(self.stream)))

    def lose_tail(self, letters: int) -> None:
        """The server crashed before it fsynced; expired letters stay expired."""
        del self.stream[max(self.first - 1, len(self.stream) - letters) :]

    def expire(self, letters: int) -> None:
        self.first = min(self.first + letters, len(self.stream) + 1)

    def id_at(self, sequence: int) -> str:
        key, number = self.stream[sequence - 1]
        return key.message_id(number)

    def restore(self) -> bool:
        point, last = self.point, len(self.stream)
        found = self.id_at(point.sequence) if point and self.first <= point.sequence <= last else None
        begin = base(self.saved, point, InState(self.first, last, found))
        for at in range(begin.replay_from, last + 1):
            key, number = self.stream[at - 1]
            begin.marks.stored(key, number, at)
        self.marks = begin.marks
        return begin.intact


STEPS = st.lists(st.one_of(st.sampled_from(LANES), st.sampled_from(["save", "restore"])), max_size=60)


@given(STEPS, st.integers(min_value=0, max_value=20))
def test_after_a_crash_of_the_courier_the_marks_are_those_of_in(steps: list[LaneKey | str], expired: int) -> None:
    world = World()
    for step in steps:
        if isinstance(step, LaneKey):
            world.letter(step)
        else:
            getattr(world, step)()
    before = dict(world.marks.flat)
    world.save()
    world.expire(expired)
    world.restore()
    assert world.marks.flat == before


@given(STEPS, st.integers(min_value=0, max_value=30))
def test_after_the_server_lost_letters_no_mark_promises_what_in_does_not_hold(
    steps: list[LaneKey | str], lost: int
) -> None:
    world = World()
    for step in steps:
        if isinstance(step, LaneKey):
            world.letter(step)
        else:
            getattr(world, step)()
    world.lose_tail(lost)
    world.restore()
    held: dict[LaneKey, int] = {}
    for key, number in world.stream:
        held[key] = max(held.get(key, 0), number)
    assert world.marks.flat == held
    # What was not believed is not found again by the next restore.
    world.save()
    world.restore()
    assert world.marks.flat == held


def test_marks_of_letters_that_expired_from_in_survive_even_if_the_rest_is_read_anew() -> None:
    world = World()
    world.letter(LANES[0])
    for _ in range(5):
        world.letter(LANES[2])
    world.save()
    world.expire(1)
    world.lose_tail(2)
    assert not world.restore()
    assert world.marks.flat == {LANES[0]: 1, LANES[2]: 3}


def test_an_emptied_in_takes_every_mark_with_it() -> None:
    world = World()
    world.letter(LANE)
    world.save()
    world.stream.clear()
    world.restore()
    assert world.marks.flat == {}
    world.save()
    assert world.saved[ADDRESS] == SavedDevice(epochs={})


def test_gaps_are_counted_once() -> None:
    marks = Marks()
    marks.stored(LANE, 1, 10)
    marks.skip([Gap(LANE, 2, 4)])
    marks.stored(LANE, 5, 11)
    assert marks.of(ADDRESS, EPOCH) == {"normal": 5}
    assert marks.lost(LANE) == 3
    # A replay of IN sees the same.
    replayed = Marks()
    replayed.stored(LANE, 1, 10)
    replayed.stored(LANE, 5, 11)
    assert replayed.lost(LANE) == 3


def test_an_older_letter_changes_nothing() -> None:
    marks = Marks()
    marks.stored(LANE, 5, 1)
    marks.take_changed({})
    marks.stored(LANE, 4, 2)
    assert marks.flat == {LANE: 5}
    assert marks.take_changed({}) == {}


def test_epochs_stand_in_the_order_in_which_they_spoke_and_are_bounded() -> None:
    marks = Marks()
    epochs = [f"01J0000000000000000000{n:04d}" for n in range(MAX_EPOCHS + 2)]
    for epoch in epochs:
        marks.stored(LaneKey("harbour", "cam-1", epoch, "normal"), 1, 1)
    assert list(marks.epochs(ADDRESS)) == epochs[2:]
    assert len(marks.flat) == MAX_EPOCHS


def test_a_session_is_saved_with_the_marks_of_its_device() -> None:
    marks = Marks()
    marks.touch(ADDRESS)
    assert marks.take_changed({ADDRESS: EPOCH}) == {}
    marks.stored(LANE, 1, 1)
    assert marks.take_changed({ADDRESS: EPOCH})[ADDRESS].session == EPOCH
