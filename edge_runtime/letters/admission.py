"""Whether a verified letter down is new here. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Admission(Enum):
    """What becomes of a letter."""

    NEW = "new"
    KNOWN = "known"
    REPLAYED = "replayed"


@dataclass(frozen=True, slots=True, order=True)
class Order:
    """What orders the letters of one kind and slot; a new generation of a key makes all that the old one said stale."""

    generation: int
    revision: int


def admit(order: Order, newest: Order | None, *, own_slot: bool, seen: bool) -> Admission:
    """Judge one letter.

    Args:
        order: of the letter.
        newest: highest order that was taken in its slot.
        own_slot: the slot is the letter itself (a task, a round), so that nothing else can supersede it.
        seen: a letter of this id was taken before.
    """
    if own_slot:
        return Admission.KNOWN if seen else Admission.NEW
    if newest is None or order > newest:
        return Admission.NEW
    if order == newest and seen:
        return Admission.KNOWN
    return Admission.REPLAYED
