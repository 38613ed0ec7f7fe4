"""What proves that two devices speak with one key, and what does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from schemas.ids import Address
from schemas.topics import in_subject, refused_subject
from services.courier.integrity.clones import MAX_DISMISSED, RECENT_LETTERS, CloneWatch, Suspicion
from services.courier.up.marks import Marks
from services.courier.up.ordering import LaneKey, Slip, Verdict, rule
from services.courier.up.verifying import ENROL, Opened, is_voice

CAM = Address("harbour", "cam-1")
E1, E2, E3 = (f"01J0000000000000000000000{n}" for n in (1, 2, 3))


def letter(
    sequence: int,
    letter_id: str | None = None,
    *,
    epoch: str = E1,
    lane: str = "normal",
    kind: str = "event",
    carried: bool = False,
    stranger: bool = False,
    address: Address = CAM,
) -> Opened:
    key = LaneKey(address.fleet, address.device, epoch, lane)
    name = letter_id or f"{epoch[-1]}{lane}{sequence}"
    return Opened(address, kind, Slip(key, sequence), name.encode(), name, stranger=stranger, carried=carried)


@dataclass
class Intake:
    """The courier's way of taking letters, without a bus: judge, then store what is not suspect."""

    marks: Marks = field(default_factory=Marks)
    released: dict[Address, float] = field(default_factory=dict)
    now: float = 1_000.0
    stored: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = CloneWatch(64, lambda address: self.released.get(address, 0.0))

    def take(self, *letters: Opened) -> list[Suspicion]:
        self.now += 1
        ruling = rule([x.slip for x in letters], self.marks.flat)
        found = self.watch.judge(letters, ruling.verdicts, self.marks)
        out = {suspicion.address for suspicion in found}
        kept = [x for x in letters if x.address not in out]
        verdicts = rule([x.slip for x in kept], self.marks.flat).verdicts
        for x, verdict in zip(kept, verdicts, strict=True):
            if verdict is Verdict.ADMIT:
                self.stored.append(x.letter_id)
                spoke = None if x.carried or x.kind == ENROL else self.now
                self.marks.stored(x.slip.key, x.slip.sequence, len(self.stored), x.letter_id, spoke)
                self.watch.stored(x, len(self.stored))
        return found


def test_one_number_with_two_ids_is_a_proof_and_names_both() -> None:
    intake = Intake()
    assert intake.take(letter(1), letter(2)) == []
    [found] = intake.take(letter(2, "other"))
    assert (found.proof, found.letter.letter_id, found.places, found.address) == ("two_letters", "other", (2,), CAM)
    # Also in one batch, with the other letter at hand.
    [found] = intake.take(letter(3, "this"), letter(3, "that"))
    assert found.other == b"this"
    # And below the mark, as long as it is remembered.
    intake.take(*(letter(n) for n in range(3, 3 + RECENT_LETTERS)))
    assert intake.take(letter(4, "other"))[0].places == (4,)
    assert intake.take(letter(2, "other")) == []


def test_after_a_restart_the_letter_at_the_mark_is_still_known() -> None:
    intake = Intake()
    intake.take(letter(1), letter(2))
    intake.watch.forget()
    assert intake.take(letter(1, "other")) == []
    assert intake.take(letter(2, "other"))[0].places == (2,)


def test_an_epoch_that_goes_on_after_another_spoke_is_a_proof() -> None:
    intake = Intake()
    assert intake.take(letter(1), letter(2)) == []
    assert intake.take(letter(1, epoch=E2)) == []
    [found] = intake.take(letter(3))
    assert (found.proof, found.epochs, found.places) == ("old_epoch", (E1, E2), (3,))
    # A letter that is still too early proves it too, and so does another lane of that epoch.
    assert [x.proof for x in intake.take(letter(9))] == ["old_epoch"]
    assert [x.proof for x in intake.take(letter(1, lane="control"))] == ["old_epoch"]
    # All of it in one batch.
    fresh = Intake()
    [found] = fresh.take(letter(1), letter(1, epoch=E2), letter(2))
    assert (found.proof, found.other) == ("old_epoch", letter(1, epoch=E2).envelope)
    assert fresh.stored == []


@given(st.lists(st.integers(min_value=1, max_value=6), max_size=40), st.integers(min_value=1, max_value=6))
def test_copies_late_and_out_of_order_of_one_device_prove_nothing(arrivals: list[int], renewed_after: int) -> None:
    """One body: it begins a new epoch at some moment and then never issues in the old one again."""
    intake = Intake()
    for n in arrivals:
        assert intake.take(letter(n)) == []
    mark = intake.marks.flat.get(letter(1).slip.key, 0)
    for n in range(1, renewed_after + 1):
        assert intake.take(letter(n, epoch=E2)) == []
    # What is still on its way of the old epoch was sent before, so it is not above the mark.
    for n in range(1, mark + 1):
        assert intake.take(letter(n)) == []


def test_a_reinstalled_device_and_a_restored_image_prove_nothing() -> None:
    intake = Intake()
    for epoch in (E1, E2, E3):
        for n in (1, 2, 3):
            assert intake.take(letter(n, epoch=epoch)) == []
    assert len(intake.stored) == 9


def test_carried_letters_are_taken_and_prove_nothing_either_way() -> None:
    intake = Intake()
    intake.take(letter(1), letter(1, epoch=E2))
    assert intake.take(letter(2, carried=True)) == []
    assert intake.stored[-1] == letter(2).letter_id
    # Their epoch is not where the device speaks now.
    assert intake.take(letter(2, epoch=E2)) == []
    assert intake.take(letter(2, "other", carried=True)) == []
    # In one batch a carried letter contradicts nothing.
    assert intake.take(letter(3, "a", epoch=E2, carried=True), letter(3, "b", epoch=E2)) == []


def test_enrol_letters_of_other_keys_neither_prove_nor_begin_anything() -> None:
    intake = Intake()
    intake.take(letter(1))
    assert intake.take(letter(1, epoch=E2, kind=ENROL, stranger=True)) == []
    assert intake.take(letter(2)) == []
    assert intake.take(letter(1, "other", epoch=E2, kind=ENROL, stranger=True)) == []


def test_a_release_lets_either_body_go_on_and_finds_the_other_again() -> None:
    intake = Intake()
    intake.take(letter(1), letter(1, epoch=E2))
    assert intake.take(letter(2))
    intake.released[CAM] = intake.now
    assert intake.take(letter(2)) == []
    assert intake.take(letter(3)) == []
    [found] = intake.take(letter(2, epoch=E2))
    assert found.epochs == (E2, E1)


@pytest.mark.parametrize("first", [{"kind": ENROL, "lane": "control"}, {"carried": True}])
def test_a_new_epoch_whose_first_letter_was_an_enrol_letter_or_carried_is_no_second_body(first) -> None:
    intake = Intake()
    assert intake.take(letter(1), letter(2)) == []
    assert intake.take(letter(1, epoch=E2, **first)) == []
    lane = first.get("lane", "normal")
    assert intake.take(letter(2, epoch=E2, lane=lane)) == []
    # The one that goes on in the epoch before is.
    [found] = intake.take(letter(3))
    assert found.epochs == (E1, E2)
    together = Intake()
    together.take(letter(1))
    assert together.take(letter(1, epoch=E3, **first), letter(2, epoch=E3, lane=lane)) == []


def test_what_could_not_be_proven_is_taken_for_what_it_says() -> None:
    intake = Intake()
    intake.take(letter(1), letter(2))
    [found] = intake.take(letter(2, "other"))
    intake.watch.dismiss(found)
    assert intake.take(letter(2, "other")) == []
    for n in range(MAX_DISMISSED):
        intake.watch.dismiss(Suspicion("two_letters", letter(2, f"x{n}"), (E1,)))
    assert intake.take(letter(2, "other"))


def test_memory_is_bounded_and_devices_do_not_mix() -> None:
    watch = CloneWatch(3, lambda _: 0.0)
    for n in range(10):
        watch.stored(letter(1, address=Address("harbour", f"cam-{n}")), n)
    assert len(watch) == 3
    intake = Intake()
    other = Address("harbour", "cam-2")
    intake.take(letter(1), letter(1, "theirs", address=other))
    assert [x.address for x in intake.take(letter(1, "other"), letter(2, address=other))] == [CAM]
    assert intake.stored[-1] == letter(2).letter_id


@pytest.mark.parametrize(
    ("subject", "way", "speaks"),
    [
        (in_subject("event", CAM), None, True),
        (refused_subject(CAM), None, True),
        (in_subject("event", CAM), "carried", False),
        (in_subject("event", CAM), "replayed", False),
        (in_subject("enrol", CAM), None, False),
    ],
)
def test_in_says_in_which_epoch_a_device_speaks(subject: str, way: str | None, speaks: bool) -> None:
    assert is_voice(subject, way) is speaks


def test_the_present_epoch_and_the_ids_at_the_marks_are_saved() -> None:
    marks = Marks()
    name = str(ULID())
    marks.stored(letter(1).slip.key, 1, 7, name, 12.5)
    saved = marks.take_changed({})[CAM]
    again = Marks()
    again.load(CAM, saved)
    assert again.head(letter(1).slip.key) == (name, 7)
    assert (again.voice(CAM), again.heads(CAM, E1)) == (marks.voice(CAM), {"normal": name})
    # A mark that jumps over what was given up has no letter.
    again.lower(letter(1).slip.key, 0)
    assert (again.heads(CAM, E1), again.of(CAM, E1)) == ({}, {"normal": 0})
