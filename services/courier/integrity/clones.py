"""Whether two devices speak with one key: a copied disk. Pure.

Two proofs, and only from letters that came straight from a device, since a carrier may bring old news:

- two letters of one (epoch, lane, sequence) with different ids: one outbox never gives a number twice;
- a letter above the mark of an epoch after another epoch spoke: an outbox that began a new epoch never goes back.

A device that was reinstalled, or whose disk was restored from an image, begins a new epoch and leaves the old one
silent. A repeated letter has the id that it had before. Neither proves anything.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from schemas.ids import Address
from services.courier.up.marks import Marks, Voice
from services.courier.up.ordering import LaneKey, Verdict
from services.courier.up.verifying import ENROL, Opened

RECENT_LETTERS = 8
"""Ids that are remembered per lane; a clone repeats the numbers just stored."""

MAX_DISMISSED = 4_096

Proof = Literal["two_letters", "old_epoch"]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What speaks for a clone.

    Attributes:
        letter: the letter that came last.
        other: the letter that it contradicts, if it is at hand.
        places: where IN may hold such a letter.
    """

    proof: Proof
    letter: Opened
    epochs: tuple[str, ...]
    other: bytes | None = None
    places: tuple[int, ...] = ()

    @property
    def address(self) -> Address:
        """Who has two bodies."""
        return self.letter.address


@dataclass(slots=True)
class _Batch:
    found: dict[Address, Suspicion] = field(default_factory=dict)
    admitted: dict[tuple[LaneKey, int], Opened] = field(default_factory=dict)
    voices: dict[Address, Opened] = field(default_factory=dict)
    epochs: dict[Address, dict[str, None]] = field(default_factory=dict)


class CloneWatch:
    """Remembers the ids of the last letters of the lanes that spoke last. What it forgets is found at the next chance.

    Args:
        lanes: how many are remembered.
        released_at: when an operator last let a device out of quarantine, in seconds since 1970; 0 if never.
    """

    def __init__(self, lanes: int, released_at: Callable[[Address], float]) -> None:
        self._lanes = lanes
        self._released_at = released_at
        self._recent: OrderedDict[LaneKey, deque[tuple[int, str, int]]] = OrderedDict()
        self._dismissed: OrderedDict[tuple[LaneKey, int, str], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recent)

    def stored(self, letter: Opened, at: int) -> None:
        """A letter is in IN at `at`."""
        key = letter.slip.key
        recent = self._recent.get(key)
        if recent is None:
            recent = self._recent[key] = deque(maxlen=RECENT_LETTERS)
            if len(self._recent) > self._lanes:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(key)
        recent.append((letter.slip.sequence, letter.letter_id, at))

    def forget(self) -> None:
        """IN was read anew: places in it may have changed."""
        self._recent.clear()

    def dismiss(self, suspicion: Suspicion) -> None:
        """It could not be proven: take the letter for what it says."""
        self._dismissed[_name(suspicion.letter)] = None
        if len(self._dismissed) > MAX_DISMISSED:
            self._dismissed.popitem(last=False)

    def judge(self, letters: Sequence[Opened], verdicts: Sequence[Verdict], marks: Marks) -> list[Suspicion]:
        """Look through a batch, in its order; at most one suspicion per device.

        Args:
            letters: of a batch.
            verdicts: what ordering says of each.
            marks: as they are before the batch is stored.
        """
        batch = _Batch()
        for letter, verdict in zip(letters, verdicts, strict=True):
            if letter.stranger or letter.address in batch.found:
                continue
            suspicion = self._suspect(letter, verdict, marks, batch)
            if suspicion is not None and not letter.carried and _name(letter) not in self._dismissed:
                batch.found[letter.address] = suspicion
            elif verdict is Verdict.ADMIT:
                _admit(letter, batch)
        return list(batch.found.values())

    def _suspect(self, letter: Opened, verdict: Verdict, marks: Marks, batch: _Batch) -> Suspicion | None:
        if verdict is Verdict.DUPLICATE:
            return self._same_number(letter, marks, batch)
        return self._old_epoch(letter, marks, batch)

    def _same_number(self, letter: Opened, marks: Marks, batch: _Batch) -> Suspicion | None:
        key, sequence = letter.slip.key, letter.slip.sequence
        here = batch.admitted.get((key, sequence))
        if here is not None:
            if here.letter_id == letter.letter_id or here.carried:
                return None
            return Suspicion("two_letters", letter, (key.epoch,), other=here.envelope)
        known = self._known(key, sequence, marks)
        if known is None or known[0] == letter.letter_id:
            return None
        return Suspicion("two_letters", letter, (key.epoch,), places=(known[1],))

    def _known(self, key: LaneKey, sequence: int, marks: Marks) -> tuple[str, int] | None:
        if marks.flat.get(key) == sequence:
            return marks.head(key)
        return next(((name, at) for number, name, at in self._recent.get(key, ()) if number == sequence), None)

    def _old_epoch(self, letter: Opened, marks: Marks, batch: _Batch) -> Suspicion | None:
        address, epoch = letter.address, letter.slip.key.epoch
        here = batch.voices.get(address)
        voice = Voice(here.slip.key.epoch, math.inf) if here is not None else marks.voice(address)
        if voice is None or voice.epoch == epoch or letter.kind == ENROL:
            return None
        known = [*marks.epochs(address), *batch.epochs.get(address, ())]
        released = self._released_at(address)
        # A release lets either of two bodies go on, in whichever epoch it speaks.
        if epoch not in known or voice.at <= released:
            return None
        # An epoch that began later may be known by what is no voice: by its enrol letter, or by what was carried.
        if not released and voice.epoch in known and known.index(epoch) > known.index(voice.epoch):
            return None
        return Suspicion(
            "old_epoch",
            letter,
            (epoch, voice.epoch),
            other=here.envelope if here is not None else None,
            places=tuple(marks.places(address, voice.epoch)),
        )


def _name(letter: Opened) -> tuple[LaneKey, int, str]:
    return letter.slip.key, letter.slip.sequence, letter.letter_id


def _admit(letter: Opened, batch: _Batch) -> None:
    address = letter.address
    batch.admitted[letter.slip.key, letter.slip.sequence] = letter
    batch.epochs.setdefault(address, {})[letter.slip.key.epoch] = None
    if not letter.carried and letter.kind != ENROL:
        batch.voices[address] = letter
