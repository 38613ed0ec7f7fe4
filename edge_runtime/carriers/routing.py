"""Who gets which copy, and what goes when there is no room. Pure.

Spray and wait (Spyropoulos 2005): a fragment begins with 4 copies; whoever holds more than one gives half of them to
whom it meets, whoever holds one waits until it meets the destination. A device with a link to the platform counts as
the platform's door, so that even the last copy is handed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from edge_runtime.carriers.names import FragmentKey, Label, key_of
from schemas.bundles import MAX_HOPS, Parcel
from schemas.events import LANES, PLATFORM_RECIPIENT, Lane

ORIGIN_SHARE = 0.25
"""Of the room; what one origin's bundles may fill."""
UNVERIFIED_SHARE = 0.25
"""Of the room; what all heads together may fill of which nobody here can tell whether they are genuine."""
GIVER_SHARE = 0.5
"""Of the room; what one peer may fill with verified ones, whatever origins it names."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A fragment in custody, without its payload.

    Attributes:
        copies: how many it may still become, itself included; 0 for one that may only be delivered.
        age_s: as of now.
        own: this device is its origin.
        giver: address of the peer that brought it; empty for own ones.
        verified: its origin's signature is known to hold.
        index: which part of its bundle it is.
    """

    key: FragmentKey
    origin: str
    destination: str
    priority: Lane
    lifetime_s: int
    hops: int
    copies: int
    age_s: float
    bytes: int
    own: bool = False
    giver: str = ""
    verified: bool = True
    index: int = 0

    @property
    def label(self) -> Label:
        """The bundle that it is part of."""
        return Label(self.key[0], self.origin, self.destination)

    @property
    def expired(self) -> bool:
        """Whether its life is over."""
        return self.age_s >= self.lifetime_s


def facts_of(parcel: Parcel, giver: str = "", *, verified: bool = False) -> Carried:
    """What routing needs to know of a fragment that has just come; it has no copies before they are released."""
    head, way = parcel.head, parcel.way
    return Carried(
        key=key_of(parcel),
        origin=head.origin,
        destination=head.destination,
        priority=head.priority,
        lifetime_s=head.lifetime_s,
        hops=way.hops,
        copies=0,
        age_s=way.age_s,
        bytes=len(parcel.head_bytes) + len(parcel.payload),
        giver=giver,
        verified=verified,
        index=head.fragment.index,
    )


@dataclass(frozen=True, slots=True)
class Meeting:
    """What routing knows of the other side.

    Attributes:
        source: its address; empty for a folder.
        gateway: what is for the platform can be handed over for good.
        linked: this device has a link itself, so that it needs nobody for that.
    """

    source: str
    gateway: bool
    linked: bool


@dataclass(frozen=True, slots=True)
class Share:
    """Copies that go, and copies that stay; `drop` if the fragment itself need not stay."""

    given: int
    kept: int
    drop: bool


def share(carried: Carried, meeting: Meeting) -> Share | None:
    """What to give of a fragment; None for nothing."""
    if carried.expired or carried.hops >= MAX_HOPS:
        return None
    if carried.destination == meeting.source:
        return Share(carried.copies, 0, drop=True)
    if carried.origin == meeting.source:
        return None
    if carried.destination == PLATFORM_RECIPIENT:
        if meeting.linked:
            return None
        if meeting.gateway and carried.copies <= 1:
            return Share(carried.copies, 0, drop=True)
    half = carried.copies // 2
    return Share(half, carried.copies - half, drop=False) if half else None


def offers(
    held: Iterable[Carried], meeting: Meeting, *, has: Collection[FragmentKey], done: Collection[str] = ()
) -> list[FragmentKey]:
    """Fragments to hand to a peer: own ones first, then verified ones, then the more urgent, then the older.

    Args:
        held: what there is.
        meeting: with whom.
        has: fragments that it has already.
        done: names of bundles that it knows to be finished.
    """
    wanted = [
        carried
        for carried in held
        if carried.key not in has and share(carried, meeting) is not None and carried.label.name not in done
    ]
    return [carried.key for carried in sorted(wanted, key=_rank)]


def to_hand_in(held: Iterable[Carried]) -> list[FragmentKey]:
    """What a device with a link hands to the platform, in order; never its own, whose letters go directly."""
    wanted = [c for c in held if c.destination == PLATFORM_RECIPIENT and not c.own and not c.expired]
    return [carried.key for carried in sorted(wanted, key=_rank)]


@dataclass(frozen=True, slots=True)
class Room:
    """Bounds of what is carried for others."""

    bytes: int
    fragments: int

    def part(self, ratio: float) -> Room:
        """A share of it."""
        return Room(int(self.bytes * ratio), max(1, int(self.fragments * ratio)))


@dataclass(frozen=True, slots=True)
class Admitted:
    """Whether a fragment finds room, and what must go for it."""

    taken: bool
    evicted: tuple[FragmentKey, ...] = ()


def admit(new: Carried, held: Sequence[Carried], room: Room) -> Admitted:
    """Find room for a fragment.

    The quotas of its origin and of its giver come first: a new fragment above them pushes out nothing. Then go what is
    expired, then what is not verified, then the least urgent and oldest of the origin that takes most, but never
    something more urgent than the new one.

    One that is not verified pushes out nothing that is, and only what a giver brought who has more of the kind here; so
    whoever forges, however urgently, leaves each other giver its part of that share. Both quotas count them apart, so
    that they keep out nothing that is genuine. Own bundles have their own bound and are never counted here.
    """
    others = [carried for carried in held if not carried.own]
    gone = [carried.key for carried in others if carried.expired]
    others = [carried for carried in others if not carried.expired]
    if _over(new, others, lambda c: (c.origin, c.verified), room, ORIGIN_SHARE):
        return Admitted(taken=False, evicted=tuple(gone))
    if _over(new, others, lambda c: (c.giver, c.verified), room, GIVER_SHARE):
        return Admitted(taken=False, evicted=tuple(gone))
    pushed: list[FragmentKey] = []
    while (crowded := _crowded(new, others, room)) is not None:
        victim = _doubtful(crowded, new, room) or (_victim(crowded, new.priority) if new.verified else None)
        if victim is None:
            # What it would have pushed out stays.
            return Admitted(taken=False, evicted=tuple(gone))
        pushed.append(victim.key)
        others.remove(victim)
    return Admitted(taken=True, evicted=(*gone, *pushed))


def _crowded(new: Carried, others: Sequence[Carried], room: Room) -> Sequence[Carried] | None:
    """Among whom there is no room for a fragment; None if there is."""
    doubtful = [carried for carried in others if not carried.verified]
    if not new.verified and not _fits([*doubtful, new], room.part(UNVERIFIED_SHARE)):
        return doubtful
    return None if _fits([*others, new], room) else others


def _over(new: Carried, others: Collection[Carried], of: Callable[[Carried], object], room: Room, ratio: float) -> bool:
    same = [carried for carried in others if of(carried) == of(new)]
    return not _fits([*same, new], room.part(ratio))


def _fits(carried: Sequence[Carried], room: Room) -> bool:
    return len(carried) <= room.fragments and sum(one.bytes for one in carried) <= room.bytes


def _doubtful(others: Sequence[Carried], new: Carried, room: Room) -> Carried | None:
    """Of what is not verified: the least urgent and oldest of the giver that has most of it here."""
    given: dict[str, list[Carried]] = {}
    for carried in others:
        if not carried.verified:
            given.setdefault(carried.giver, []).append(carried)
    if not given:
        return None
    fills = {giver: _filled(theirs, room) for giver, theirs in given.items()}
    most = max(fills, key=lambda giver: (fills[giver], giver))
    if not new.verified and fills[most] <= _filled([*given.get(new.giver, ()), new], room):
        return None
    return max(given[most], key=lambda c: (LANES.index(c.priority), c.age_s, c.key))


def _filled(carried: Sequence[Carried], room: Room) -> float:
    """Which part of the room these take, of its bytes or of its places."""
    return max(sum(one.bytes for one in carried) / room.bytes, len(carried) / room.fragments)


def _victim(others: Sequence[Carried], urgency: Lane) -> Carried | None:
    """Of the origin with most bytes among those that hold something no more urgent: its least urgent, oldest."""
    open_to = [carried for carried in others if LANES.index(carried.priority) >= LANES.index(urgency)]
    if not open_to:
        return None
    sizes: dict[str, int] = {}
    for carried in others:
        sizes[carried.origin] = sizes.get(carried.origin, 0) + carried.bytes
    return max(open_to, key=lambda c: (sizes[c.origin], LANES.index(c.priority), c.age_s, c.key))


def _rank(carried: Carried) -> tuple[bool, bool, int, float, FragmentKey]:
    return not carried.own, not carried.verified, LANES.index(carried.priority), -carried.age_s, carried.key
