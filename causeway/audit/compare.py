"""Compares what devices issued with what the platform stored and what had an effect. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Issued:
    """A letter that a device's outbox gave a number."""

    device: str
    epoch: str
    lane: str
    sequence: int
    letter: str
    kind: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """A range of numbers that an outbox gave up by policy, and says so."""

    device: str
    epoch: str
    lane: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A letter as it stands in IN, in IN's order."""

    device: str
    epoch: str
    lane: str
    sequence: int
    letter: str
    kind: str


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect that a service keeps in its own ledger.

    Attributes:
        what: the thing that may change once, as `update train-1/3/cam-2`.
        letter: the letter that changed it.
    """

    what: str
    letter: str


class Audit(BaseModel):
    """What the comparison found. Lists name letters and things, at most `SHOWN` of each."""

    devices: int
    letters_sent: int
    letters_stored: int
    letters_dropped_by_policy: int
    letters_lost: int
    letters_applied_twice: int
    letters_out_of_order: int
    effects: int
    lost: list[str]
    twice: list[str]
    out_of_order: list[str]


SHOWN = 50


def compare(
    issued: Iterable[Issued], dropped: Iterable[Dropped], stored: Iterable[Stored], effects: Iterable[Effect]
) -> Audit:
    """Hold the ledgers against each other.

    A letter is lost if a device issued it, did not give it up by policy, and IN does not hold it. A number that is
    missing from an outbox's own table counts as issued too, since numbers are given without gaps. It is applied twice
    if IN holds it twice, if two letters changed one thing, or one letter changed something twice.
    """
    sent = {(i.device, i.epoch, i.lane, i.sequence): i for i in issued}
    gaps = list(dropped)
    given_up = {(d.device, d.epoch, d.lane, n) for d in gaps for n in range(d.first, d.last + 1)}
    arrivals = list(stored)
    held = Counter((s.device, s.epoch, s.lane, s.sequence) for s in arrivals)
    ids = Counter(s.letter for s in arrivals)
    # A letter may have been renumbered into a new epoch, so its id decides.
    lost = [i for place, i in sent.items() if i.letter not in ids and place not in given_up and place not in held]
    listed = list(effects)
    twice = [f"IN holds {'/'.join(map(str, place))} {count} times" for place, count in held.items() if count > 1]
    twice += [f"IN holds letter {letter} {count} times" for letter, count in ids.items() if count > 1]
    by_thing = Counter(effect.what for effect in listed)
    twice += [f"{what} was changed {count} times" for what, count in by_thing.items() if count > 1]
    by_letter = Counter((effect.letter, effect.what.partition(" ")[0]) for effect in listed)
    twice += [
        f"letter {letter} had {count} effects as {kind}" for (letter, kind), count in by_letter.items() if count > 1
    ]
    disorder = _out_of_order(arrivals)
    return Audit(
        devices=len({i.device for i in sent.values()}),
        letters_sent=len(sent),
        letters_stored=len(arrivals),
        letters_dropped_by_policy=len(given_up),
        letters_lost=len(lost),
        letters_applied_twice=len(twice),
        letters_out_of_order=len(disorder),
        effects=len(listed),
        lost=[f"{i.device} {i.kind} {i.lane}/{i.sequence} {i.letter}" for i in lost[:SHOWN]],
        twice=twice[:SHOWN],
        out_of_order=disorder[:SHOWN],
    )


def _out_of_order(arrivals: Iterable[Stored]) -> list[str]:
    last: dict[tuple[str, str, str], int] = {}
    found = []
    for arrival in arrivals:
        lane = (arrival.device, arrival.epoch, arrival.lane)
        if arrival.sequence < last.get(lane, 0):
            found.append(f"{'/'.join(lane)}: {arrival.sequence} after {last[lane]}")
        last[lane] = max(arrival.sequence, last.get(lane, 0))
    return found
