"""Letters that travel with carriers: devices that meet at random, and the devices' own routing. Pure; times in hours.

No network and no disk here: what is simulated is who meets whom, and when. What a device does at a meeting is decided
by `edge_runtime.carriers.routing`, the module that real devices use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from causeway.simulate.statistics import Delay
from edge_runtime.carriers.routing import Carried, Meeting, share
from schemas.bundles import MAX_COPIES, MAX_LIFETIME_S
from schemas.events import PLATFORM_RECIPIENT

HOUR_S = 3_600
STRATEGIES = {"direct": 1, "spray and wait": MAX_COPIES, "epidemic": 1 << 30}
"""Copies that a letter begins with. With as many as there can ever be nobody runs out of them: epidemic routing, except
that the limit of hops still holds."""
_LETTER_BYTES = 1_024


@dataclass(frozen=True, slots=True)
class World:
    """Who meets.

    Attributes:
        nodes: with the origin, and with the one gateway that has a link to the platform.
        mean_meeting: expected hours until a given pair meets; the time is exponential.
    """

    nodes: int
    mean_meeting: float

    def __post_init__(self) -> None:
        if self.nodes < 2 or self.mean_meeting <= 0:
            raise ValueError(
                f"{self.nodes} nodes that meet every {self.mean_meeting} h: take at least 2, and above 0 h"
            )

    @property
    def gateway(self) -> int:
        """The node with a link."""
        return self.nodes - 1

    def meetings(self, random: Random) -> Iterator[tuple[float, int, int]]:
        """Time and pair of each meeting, for ever."""
        rate = self.nodes * (self.nodes - 1) / 2 / self.mean_meeting
        now = 0.0
        while True:
            now += random.expovariate(rate)
            first = random.randrange(self.nodes)
            second = random.randrange(self.nodes - 1)
            yield now, first, second + (second >= first)


@dataclass(slots=True)
class Journey:
    """One letter under one strategy."""

    world: World
    held: dict[int, Carried] = field(default_factory=dict)
    delivered_at: float | None = None
    handed_over: int = 0

    @classmethod
    def begin(cls, world: World, copies: int) -> Journey:
        """Node 0 is its origin."""
        letter = Carried(
            key=("simulated", "letter"),
            origin=_name(0),
            destination=PLATFORM_RECIPIENT,
            priority="normal",
            lifetime_s=MAX_LIFETIME_S,
            hops=0,
            copies=copies,
            age_s=0.0,
            bytes=_LETTER_BYTES,
            own=True,
        )
        return cls(world, {0: letter})

    def meet(self, now: float, first: int, second: int) -> None:
        """Two nodes meet, and each may give to the other."""
        for giver, taker in ((first, second), (second, first)):
            carried = self.held.get(giver)
            if carried is None or taker in self.held or self.delivered_at is not None:
                continue
            gateway = taker == self.world.gateway
            what = share(replace(carried, age_s=now * HOUR_S), Meeting(_name(taker), gateway=gateway, linked=False))
            if what is None:
                continue
            self.handed_over += 1
            if gateway:
                self.delivered_at = now
            elif what.drop:
                del self.held[giver]
            else:
                self.held[giver] = replace(carried, copies=what.kept)
            self.held[taker] = replace(carried, copies=what.given, hops=carried.hops + 1, own=False, giver=_name(giver))


@dataclass(frozen=True, slots=True)
class Travelled:
    """Delays of one strategy, and what they cost.

    Attributes:
        handed_over: times that a letter changed hands, per letter.
    """

    delays: tuple[Delay, ...]
    handed_over: float


def travel(world: World, letters: int, random: Random) -> dict[str, Travelled]:
    """Send letters under each strategy through the same meetings.

    A letter that is older than its life is over, as on real devices.
    """
    delays: dict[str, list[Delay]] = {name: [] for name in STRATEGIES}
    handed = dict.fromkeys(STRATEGIES, 0)
    end = MAX_LIFETIME_S / HOUR_S
    for _ in range(letters):
        journeys = {name: Journey.begin(world, copies) for name, copies in STRATEGIES.items()}
        for now, first, second in world.meetings(random):
            for journey in journeys.values():
                if journey.delivered_at is None:
                    journey.meet(now, first, second)
            if now >= end or all(journey.delivered_at is not None for journey in journeys.values()):
                break
        for name, journey in journeys.items():
            at = journey.delivered_at
            delays[name].append(Delay(end if at is None else at, delivered=at is not None))
            handed[name] += journey.handed_over
    return {name: Travelled(tuple(delays[name]), handed[name] / letters) for name in STRATEGIES}


def _name(node: int) -> str:
    return f"causeway:///simulated/node-{node}"
