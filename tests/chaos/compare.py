"""Holds the senders' ledgers against the receivers'. Pure, and knows nothing of how letters travel.

A program numbers its letters itself, per device and lane, before it hands them over; whoever receives notes these
numbers. What the runtime calls them on the way (epoch, sequence) is looked at only to hold it against its own promise.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

SHOWN = 20
"""Findings that are named, of each sort."""

Place = tuple[str, str]
"""Device and lane."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A letter that a program handed over, as its own ledger has it."""

    device: str
    lane: str
    number: int
    letter: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """The same as a receiver saw it, in the order of its coming; without an epoch where nobody tells one."""

    device: str
    lane: str
    number: int
    letter: str
    epoch: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Given:
    """A range that a device's loss ledger gives up; unless it says that they may have been sent, none of it comes."""

    device: str
    lane: str
    letters: int
    named: frozenset[str] = frozenset()
    maybe_arrived: bool = False


@dataclass(frozen=True, slots=True)
class Posted:
    """A letter down, by its poster's own number."""

    device: str
    number: int
    letter: str


@dataclass(frozen=True, slots=True)
class Applied:
    """One run of a handler on a device.

    Attributes:
        life: which life of the agent it was; a handler may run again after a crash, and never in the same life.
        effect: whether it changed anything: a handler that knows the letter does not.
    """

    device: str
    number: int
    letter: str
    life: str
    effect: bool = True


@dataclass
class Findings:
    """What does not add up. Each list names at most `SHOWN`; the counts are whole."""

    lost: int = 0
    applied_twice: int = 0
    out_of_order: int = 0
    drops_not_in_ledger: int = 0
    policy_drops: int = 0
    dropped_but_arrived: int = 0
    """In the ledger, and arrived all the same."""
    denied_but_arrived: int = 0
    """Those of them that were never sent, says the ledger."""
    down_overtaken: int = 0
    """Letters down that came after a later one; each has its own slot, and order is promised within a slot only."""
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, what: str, example: str, count: int = 1) -> None:
        """Count a finding and name it."""
        setattr(self, what, getattr(self, what) + count)
        if len(self.examples[what]) < SHOWN:
            self.examples[what].append(example)

    def __add__(self, other: Findings) -> Findings:
        both = Findings()
        for name in (one.name for one in fields(Findings) if one.type == "int"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        for one in (self, other):
            for what, examples in one.examples.items():
                both.examples[what] += examples
        return both

    @property
    def clean(self) -> bool:
        """Whether the promise held."""
        return not (
            self.lost or self.applied_twice or self.out_of_order or self.drops_not_in_ledger or self.denied_but_arrived
        )


def compare_up(
    sent: Iterable[Sent],
    arrived: Iterable[Arrived],
    given: Iterable[Given] = (),
    dropped_here: Mapping[Place, int] | None = None,
) -> Findings:
    """Letters up.

    Args:
        sent: every device's own ledger.
        arrived: the receiver's, in its order.
        given: the loss ledger, as it arrived.
        dropped_here: how many letters each outbox itself says that it gave up, whether it could report them or not.
    """
    findings = Findings()
    known = {(letter.device, letter.lane, letter.number): letter for letter in sent}
    arrivals = list(arrived)
    _check_arrivals(arrivals, known, findings)
    present = {(a.device, a.lane, a.number) for a in arrivals}
    missing: dict[Place, list[Sent]] = defaultdict(list)
    for place, letter in known.items():
        if place not in present:
            missing[letter.device, letter.lane].append(letter)
    _check_missing(missing, list(given), dropped_here or {}, {a.letter for a in arrivals}, findings)
    return findings


def compare_effects(effects: Iterable[Arrived], arrived: Iterable[Arrived], lane: str) -> Findings:
    """What a service made of the letters of one lane, against those that are stored for it: each once."""
    findings = Findings()
    counts = Counter((e.device, e.number) for e in effects)
    stored = {(a.device, a.number) for a in arrived if a.lane == lane}
    for device, number in sorted(stored - counts.keys()):
        findings.note("lost", f"effect of {device} {lane} {number}")
    for (device, number), count in counts.items():
        if count > 1:
            findings.note("applied_twice", f"effect of {device} {lane} {number}: {count} times", count - 1)
    return findings


def compare_down(posted: Iterable[Posted], applied: Iterable[Applied]) -> Findings:
    """Letters down."""
    findings = Findings()
    runs = list(applied)
    effects = Counter((run.device, run.number) for run in runs if run.effect)
    for post in posted:
        count = effects.pop((post.device, post.number), 0)
        if count == 0:
            findings.note("lost", f"down to {post.device} {post.number} {post.letter}")
        elif count > 1:
            findings.note("applied_twice", f"down to {post.device} {post.number}: {count} times", count - 1)
    for device, number in effects:
        findings.note("applied_twice", f"down to {device} {number}: nobody posted it")
    highest: dict[str, int] = {}
    for run in runs:
        if run.effect:
            findings.down_overtaken += run.number < highest.get(run.device, 0)
            highest[run.device] = max(run.number, highest.get(run.device, 0))
    lives = Counter((run.device, run.letter, run.life) for run in runs)
    for (device, letter, _), count in lives.items():
        if count > 1:
            findings.note("applied_twice", f"handler of {device} ran {count} times for {letter} in one life", count - 1)
    return findings


def compare_boards(posted: Iterable[Posted], applied: Iterable[Applied]) -> Findings:
    """Letters down to one slot per device, where the newest wins: those between may be missing, the last may not."""
    findings = Findings()
    newest: dict[str, int] = {}
    for post in posted:
        newest[post.device] = max(post.number, newest.get(post.device, 0))
    shown: dict[str, int] = {}
    for run in applied:
        if not run.effect:
            continue
        before = shown.get(run.device, 0)
        if run.number == before:
            findings.note("applied_twice", f"board of {run.device} {run.number}")
        elif run.number < before:
            findings.note("out_of_order", f"board of {run.device}: {run.number} after {before}")
        shown[run.device] = max(run.number, before)
    for device, number in newest.items():
        if shown.get(device, 0) != number:
            findings.note("lost", f"board of {device} shows {shown.get(device, 0)}, {number} was posted last")
    return findings


def _check_arrivals(arrivals: list[Arrived], known: Mapping[tuple[str, str, int], Sent], findings: Findings) -> None:
    seen: set[tuple[str, str, int]] = set()
    spots: set[tuple[str, str, str, int]] = set()
    highest: dict[Place, int] = {}
    for arrival in arrivals:
        place = (arrival.device, arrival.lane, arrival.number)
        text = f"{arrival.device} {arrival.lane} {arrival.number} {arrival.letter}"
        spot = (arrival.device, arrival.epoch, arrival.lane, arrival.sequence)
        if place in seen or (arrival.epoch and spot in spots):
            findings.note("applied_twice", text)
            continue
        if place not in known or known[place].letter != arrival.letter:
            findings.note("applied_twice", f"{text}: nobody sent it")
        seen.add(place)
        spots.add(spot)
        lane = place[:2]
        if arrival.number < highest.get(lane, 0):
            findings.note("out_of_order", f"{text} after {highest[lane]}")
        highest[lane] = max(arrival.number, highest.get(lane, 0))


def _check_missing(
    missing: Mapping[Place, list[Sent]],
    given: list[Given],
    dropped_here: Mapping[Place, int],
    present: set[str],
    findings: Findings,
) -> None:
    named = {letter for loss in given for letter in loss.named}
    findings.dropped_but_arrived = len(named & present)
    denied = {letter for loss in given for letter in loss.named if not loss.maybe_arrived}
    for letter in sorted(denied & present):
        findings.note("denied_but_arrived", letter)
    reported: Counter[Place] = Counter()
    unnamed: Counter[Place] = Counter()
    for loss in given:
        reported[loss.device, loss.lane] += loss.letters
        unnamed[loss.device, loss.lane] += max(0, loss.letters - len(loss.named))
    for lane, letters in missing.items():
        silent = max(0, dropped_here.get(lane, 0) - reported[lane])
        for letter in letters:
            text = f"{letter.device} {letter.lane} {letter.number} {letter.letter}"
            if letter.letter in named:
                findings.policy_drops += 1
            elif unnamed[lane] > 0:
                unnamed[lane] -= 1
                findings.policy_drops += 1
            elif silent > 0:
                silent -= 1
                findings.policy_drops += 1
                findings.note("drops_not_in_ledger", text)
            else:
                findings.note("lost", text)
