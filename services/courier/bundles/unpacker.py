"""Bundles to the platform: fragments joined, verified, opened, and their letters handed to the intake."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import structlog
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from schemas.bundles import Parcel, open_bundle
from schemas.errors import ContractError, MessageError
from schemas.ids import Address
from services.courier import metrics
from services.courier.bundles.early import Early
from services.courier.bundles.fragments import Arrival, Fragments, Gathering
from services.courier.bundles.opening import bundle_subject, check_parcel, letters_of
from services.courier.bundles.origins import Origins
from services.courier.down.postman import Postman
from services.courier.settings import CourierSettings
from services.courier.up.carried import CarriedLetters, Judged
from services.courier.up.verifying import Devices
from services.kit.rejects import Turnstile

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of handing over one fragment.

    Attributes:
        state: `held` until the others come, `known` if all of the bundle is in IN already, `stored` if it is now,
            `early` if letters before some of its letters are still missing, `refused` with the reason in `error`.
        origin: who made the bundle.
        settled: tickets that need not come again.
    """

    state: Literal["held", "known", "stored", "early", "refused"]
    origin: Address
    judged: Judged = field(default_factory=Judged)
    settled: tuple[int, ...] = ()
    error: ContractError | None = None


class Unpacker:
    """Works while this courier is active.

    Args:
        devices: who may speak.
        platform: this one.
        seal_key: what opens bundles to the courier.
        carried: the way to the intake.
        postman: whose mailboxes are told what a device holds.
        answer: called with each device that is owed an answer.
    """

    def __init__(
        self,
        devices: Devices,
        platform: str,
        seal_key: X25519PrivateKey,
        *,
        carried: CarriedLetters,
        postman: Postman,
        origins: Origins,
        turnstile: Turnstile,
        answer: Callable[[Address], None],
        settings: CourierSettings,
    ) -> None:
        self._devices = devices
        self._platform = platform
        self._seal_key = seal_key
        self._carried = carried
        self._postman = postman
        self._origins = origins
        self._turnstile = turnstile
        self._answer = answer
        self._fragments = Fragments(settings.bundle_fragments, settings.bundles_per_origin, settings.bundle_wait_s)
        self._early = Early(settings.early_fragments, settings.bundles_per_origin)

    def doubt(self) -> None:
        """The connection was lost: what is held comes again, and IN may hold less than was acknowledged."""
        self._fragments.clear()
        self._early.clear()
        self._origins.doubt()

    async def take(
        self, parcel: Parcel, *, carrier: Address | None = None, ticket: int | None = None, waited_s: float = 0.0
    ) -> Outcome:
        """Take one fragment; if it is the last of its bundle, wait until its letters are judged.

        Raises:
            ContractError: why this fragment is refused, as `check_parcel`, or `inconsistent`.
        """
        doubts = self._origins.doubts
        origin, left_s = check_parcel(parcel, self._devices, self._platform, waited_s)
        own = () if ticket is None else (ticket,)
        if self._origins.is_stored(origin, parcel.head.id):
            if carrier is not None:
                self._origins.brought(origin, (carrier,), time.monotonic())
            metrics.BUNDLES.labels("known").inc()
            self._answer(origin)
            return Outcome("known", origin, settled=own)
        taken = self._fragments.take(Arrival(parcel, origin, left_s, carrier, ticket), time.monotonic())
        settled = (*taken.spare, *[n for gone in taken.dropped for n in gone.tickets.values()])
        for gone in taken.dropped:
            await self._give_up(gone, "crowded_out", "other fragments took its room")
        metrics.FRAGMENTS.set(len(self._fragments))
        if taken.whole is None:
            return Outcome("held", origin, settled=settled)
        outcome, done = await self._judge(taken.whole, doubts)
        settled = (*settled, *done)
        if outcome.judged.stored:
            settled = (*settled, *await self._follow_up(origin, doubts))
        return replace(outcome, settled=settled)

    async def expire(self) -> tuple[int, ...]:
        """Refuse what was not completed in time. Returns the tickets that need not come again."""
        gone = self._fragments.overdue(time.monotonic())
        for gathering in gone:
            await self._give_up(gathering, "incomplete", "the rest of it did not come in time")
        metrics.FRAGMENTS.set(len(self._fragments))
        return (
            *(ticket for gathering in gone for ticket in gathering.tickets.values()),
            *self._early.overdue(time.monotonic()),
        )

    async def _judge(self, gathering: Gathering, doubts: int) -> tuple[Outcome, tuple[int, ...]]:
        outcome = await self._open(gathering, doubts)
        # Tickets of before a doubt may be other letters' by now.
        if outcome.state == "early" and gathering.tickets and doubts == self._origins.doubts:
            return outcome, self._early.put(gathering)
        return outcome, tuple(gathering.tickets.values())

    async def _follow_up(self, origin: Address, doubts: int) -> tuple[int, ...]:
        """Letters of a device were stored: perhaps it is the turn of those that came too early."""
        settled: list[int] = []
        stored = True
        while stored and doubts == self._origins.doubts:
            stored = False
            for gathering in self._early.of(origin):
                outcome, done = await self._judge(gathering, doubts)
                settled += done
                stored = stored or outcome.judged.stored > 0
        return tuple(settled)

    async def _open(self, gathering: Gathering, doubts: int) -> Outcome:
        origin, parcels = gathering.origin, list(gathering.parcels.values())
        try:
            contents = open_bundle(parcels, self._seal_key)
        except ContractError as error:
            await self._refuse(gathering, error)
            return Outcome("refused", origin, error=error)
        self._origins.brought(origin, gathering.carriers, time.monotonic())
        if contents.hello is not None:
            self._origins.heard(origin, contents.hello, gathering.label.created.timestamp(), time.time())
            self._postman.got(origin, contents.hello.held)
        self._postman.got(origin, contents.got)
        letters, strange = letters_of(contents, origin)
        for letter, reason in strange:
            await self._turnstile.refuse(letter.subject, letter.raw, reason)
        judged = await self._carried.deliver(letters) if letters else Judged()
        judged = replace(judged, refused=judged.refused + len(strange))
        state: Literal["stored", "early"] = "early" if judged.early else "stored"
        # If the connection was lost meanwhile, IN may hold less than was acknowledged.
        if state == "stored" and doubts == self._origins.doubts:
            self._origins.stored(origin, gathering.bundle)
        metrics.BUNDLES.labels(state).inc()
        log.info("bundle.unpacked", device=str(origin), bundle=gathering.bundle, **_counts(judged))
        self._answer(origin)
        return Outcome(state, origin, judged)

    async def _give_up(self, gathering: Gathering, reason: str, why: str) -> None:
        have, count = len(gathering.parcels), gathering.label.fragment.count
        await self._refuse(
            gathering,
            MessageError(
                f"bundle {gathering.bundle} of {gathering.origin}: {have} of {count} fragments came; {why}",
                reason=reason,
            ),
        )

    async def _refuse(self, gathering: Gathering, error: ContractError) -> None:
        metrics.BUNDLES.labels("refused").inc()
        frame = next(iter(gathering.parcels.values())).write()
        await self._turnstile.refuse(bundle_subject(gathering.origin), frame, error)


def _counts(judged: Judged) -> dict[str, int]:
    return {
        "stored": judged.stored,
        "duplicate": judged.duplicate,
        "early": judged.early,
        "refused": judged.refused,
    }
