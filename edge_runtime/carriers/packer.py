"""Puts what waits in the outbox into a bundle to the platform, sealed so that only the courier can read it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from ulid import ULID

from edge_runtime.carriers.names import Label
from edge_runtime.carriers.packing import Packed, Span, Waiting, needed, plan
from edge_runtime.carriers.store import CarriedStore
from edge_runtime.clock import FlooredClock
from edge_runtime.identity import Identity
from edge_runtime.letters.greeting import greeting
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.letters.sending import Run
from edge_runtime.letters.signing import signed
from edge_runtime.line import CARRIED_SESSION
from edge_runtime.logs import Log
from edge_runtime.trust.keyring import Keyring
from schemas.bundles import MAX_CARRIED, Addressed, CarriedLetter, Contents, write_bundle
from schemas.courier import MAX_GOT
from schemas.depot import TrustState
from schemas.errors import ContractError
from schemas.events import LANES, PLATFORM_RECIPIENT, Lane

log = Log(__name__)

LETTER_LIFE = timedelta(days=30)
"""A stick may lie in a drawer for weeks; the courier's marks keep an old copy from doing anything twice."""
BUNDLE_LIFE_S = 14 * 86_400
MAX_LETTER_BYTES = 1 << 20
"""Of envelopes in one bundle; base64 in base64 packs to three quarters, so that they always fit when sealed."""
LOAD_LETTERS = 64
MAX_BUNDLES_AT_ONCE = 4
MAX_GIVEN_UP = 64
"""Letters that cannot be signed, at one time; for each, those in front of it are signed again."""


@dataclass(frozen=True, slots=True)
class Writings:
    """What a bundle is made from.

    Attributes:
        trust: versions of the trust metadata that this device holds.
        refused: letters down that must not come again though the inbox does not hold them.
    """

    store: CarriedStore
    outbox: Outbox
    inbox: Inbox
    keyring: Keyring
    clock: FlooredClock
    identity: Callable[[], Identity]
    trust: Callable[[], TrustState]
    refused: Callable[[], Sequence[str]] = lambda: ()


@dataclass(frozen=True, slots=True)
class _Filled:
    """Letters of one bundle."""

    letters: list[CarriedLetter]
    spans: dict[Lane, Span]
    more: bool


class Packer:
    """Keeps this device's open bundles in step with its outbox."""

    def __init__(self, writings: Writings) -> None:
        self._writings = writings
        self.problem: str | None = None

    def pack(self, *, urgent: bool = False, anew: bool = False) -> int:
        """Make what bundles are due; returns how many.

        Args:
            urgent: somebody waits for them.
            anew: the copies of the open ones are used up; pack all that waits once more.

        Raises:
            OutboxError: if the disk does not do its part.
        """
        writings = self._writings
        seal_key = courier_seal_key(writings.keyring)
        if seal_key is None:
            self.problem = "the platform's trust names no key that bundles can be sealed to"
            return 0
        self.problem = None
        store = writings.store
        if anew:
            store.close_packed(self._labels(packed.id for packed in store.packed()))
        made = given_up = 0
        while made < MAX_BUNDLES_AT_ONCE:
            waiting = self._waiting()
            decision = plan(store.packed(), waiting, self._told(), asked=store.asked(), urgent=urgent or bool(made))
            if decision.above is None:
                if decision.close:
                    store.close_packed(self._labels(decision.close))
                return made
            filled = self._fill(decision.above, waiting)
            if filled is None:
                given_up += 1
                if given_up >= MAX_GIVEN_UP:
                    self.problem = (
                        f"{given_up} letters that cannot be signed were given up; the others go the next time"
                    )
                    break
                continue
            try:
                self._write(filled, waiting.epoch, seal_key, decision.close)
            except ContractError as error:
                # Of the platform's key, say. What is carried for others goes on.
                self.problem = f"make a bundle: {error}"
                return made
            made += 1
            if not filled.more:
                break
        return made

    def tidy(self, *, linked: bool) -> None:
        """Close bundles whose letters are all receipted; over a link, also those that only ask."""
        store, marks = self._writings.store, self._waiting()
        over = [
            packed.id
            for packed in store.packed()
            if packed.epoch != marks.epoch or not needed(packed, marks) or (linked and not packed.spans)
        ]
        if over:
            store.close_packed(self._labels(over))

    def _write(self, filled: _Filled, epoch: str, seal_key: bytes, replaced: tuple[str, ...]) -> None:
        writings = self._writings
        identity, bundle = writings.identity(), str(ULID())
        contents = Contents(
            hello=greeting(self.session(), writings.outbox, writings.inbox, writings.clock, writings.trust()),
            got=self._got(),
            letters=filled.letters,
        )
        parcels = write_bundle(
            contents,
            Addressed(
                bundle_id=bundle,
                platform=identity.platform,
                origin=identity.address.source,
                destination=PLATFORM_RECIPIENT,
                created=writings.clock.now(),
                lifetime_s=BUNDLE_LIFE_S,
                priority=next((lane for lane in LANES if lane in filled.spans), "control"),
                certificate=_der(identity.certificate),
            ),
            seal_key=seal_key,
            signer=identity.signer,
        )
        packed = Packed(bundle, epoch, filled.spans, self._told(), 0.0, filled.more)
        writings.store.pack(packed, parcels, self._labels(replaced))
        log.info("bundle.made", bundle=bundle, letters=len(filled.letters), fragments=len(parcels))

    def _labels(self, bundles: Iterable[str]) -> list[Label]:
        own = self._writings.identity().address.source
        return [Label(bundle, own, PLATFORM_RECIPIENT) for bundle in bundles]

    def session(self) -> str:
        """The session that bundles speak in; made once."""
        inbox = self._writings.inbox
        session = inbox.fact(CARRIED_SESSION)
        if session is None:
            session = str(ULID())
            inbox.remember(CARRIED_SESSION, session)
        return session

    def _waiting(self) -> Waiting:
        outbox = self._writings.outbox
        lanes: dict[Lane, tuple[int, int]] = {}
        unbroken: dict[Lane, int] = {}
        for lane, (_, mark) in outbox.lanes().items():
            last = mark
            while (run := outbox.run_above(lane, last)) is not None:
                last = run.last
                unbroken.setdefault(lane, last)
            lanes[lane] = (last, mark)
        return Waiting(outbox.epoch, lanes, unbroken)

    def _told(self) -> str:
        """Names what a greeting would say beside letters: it is worth a bundle if that has changed."""
        writings = self._writings
        facts = [self._got(), writings.trust().model_dump()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def _got(self) -> list[str]:
        writings = self._writings
        return list(dict.fromkeys([*writings.refused(), *writings.inbox.newest_ids(MAX_GOT)]))[:MAX_GOT]

    def _fill(self, above: Mapping[Lane, int], waiting: Waiting) -> _Filled | None:
        """None if a letter had to be given up, so that what waits is another now."""
        letters: list[CarriedLetter] = []
        spans: dict[Lane, Span] = {}
        size, outbox = 0, self._writings.outbox
        for lane in LANES:
            mark = above.get(lane, 0)
            most = waiting.upto(lane, mark)
            while (run := outbox.run_above(lane, mark)) is not None and run.first <= most:
                # A gap in the lane ends a run; what follows it goes along, since its floor tells of the gap.
                part = Run(run.first, min(run.last, most, run.first + LOAD_LETTERS - 1))
                for letter in outbox.load(lane, part):
                    clock = self._writings.clock
                    try:
                        text = signed(letter, self._writings.identity(), clock.now(), clock.life(LETTER_LIFE)).decode()
                    except ContractError as error:
                        log.error("letters.unsendable", letter=letter.id, kind=letter.kind, reason=str(error))
                        return None if outbox.give_up(letter, "unsendable") else _Filled(letters, spans, more=False)
                    if len(letters) >= MAX_CARRIED or size + len(text) > MAX_LETTER_BYTES:
                        return _Filled(letters, spans, more=True)
                    size += len(text)
                    letters.append(CarriedLetter(kind=letter.kind, envelope=text))
                    spans[lane] = Span(spans[lane].first if lane in spans else above.get(lane, 0) + 1, letter.sequence)
                mark = part.last
        return _Filled(letters, spans, more=False)


def _der(pem: str | None) -> str | None:
    """The first certificate of a PEM text, as base64 of its DER."""
    if pem is None:
        return None
    return "".join(pem.partition("-----END")[0].split("\n")[1:])


def courier_seal_key(keyring: Keyring) -> bytes | None:
    """What bundles to the platform are sealed to; None if trust names no such key."""
    keys = [key for key in keyring.keys.values() if key.service == "courier" and key.seal is not None]
    if not keys:
        return None
    newest = max(keys, key=lambda key: key.generation)
    assert newest.seal is not None
    return base64.b64decode(newest.seal)
