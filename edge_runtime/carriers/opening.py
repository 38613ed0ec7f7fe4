"""Opens the bundles that have come for this device and passes on what is inside: trust first, then letters."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_runtime.carriers.custodian import Custodian
from edge_runtime.carriers.names import key_of, label_of
from edge_runtime.errors import TrustError
from edge_runtime.identity import Identity
from edge_runtime.logs import Log
from schemas.bundles import Contents, Parcel, open_bundle
from schemas.errors import ContractError, MessageError
from schemas.registry import EventReport
from schemas.topics import DOWN_LETTERS

log = Log(__name__)

RECEIPT = "receipt"
MAX_PAUSE_TURNS = 256
"""Of a bundle whose trust pack could not be judged, before it is tried again; twice as many each time, up to this."""
_MAX_LINE = 512


class Reader(Protocol):
    """Where the contents go."""

    async def take_trust(self, pack: bytes) -> bool:
        """Verify and take over a trust pack; what is wrong with it is told elsewhere. False if it was not judged."""

    def take_receipt(self, raw: bytes) -> None:
        """Judge a receipt."""

    def take_letter(self, kind: str, raw: bytes) -> bool:
        """Judge and store a letter; False if the disk does not take it, so that it must come again."""

    def trust_version(self) -> object:
        """Changes whenever other keys are known."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What the opening works with."""

    custodian: Custodian
    reader: Reader
    identity: Callable[[], Identity]
    report: Callable[[EventReport], None]


class Opening:
    """Takes whole bundles in the order of their coming. A bundle stays until all of it is stored."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._unknown: dict[str, object] = {}
        self._turn = 0
        self._unjudged: dict[str, tuple[int, int]] = {}
        """Bundles whose trust pack could not be judged: the turn that tries again, and how many turns that waited."""
        self.problem: str | None = None

    async def run(self) -> int:
        """Take over what is complete; returns how many bundles.

        Raises:
            OutboxError: if the disk does not do its part; the rest is taken at the next turn.
        """
        taken = 0
        store = self._desk.custodian.store
        whole = store.whole(self._desk.identity().address.source)
        self._unknown = {bundle: version for bundle, version in self._unknown.items() if bundle in whole}
        self._unjudged = {bundle: again for bundle, again in self._unjudged.items() if bundle in whole}
        self._turn += 1
        for bundle in whole:
            if bundle in self._unknown and self._unknown[bundle] == self._desk.reader.trust_version():
                continue
            if self._unjudged.get(bundle, (0, 0))[0] > self._turn:
                continue
            # While another was opened, it may have made room for newer ones.
            if bundle in store.whole(self._desk.identity().address.source):
                taken += await self._take(bundle)
        return taken

    async def _take(self, bundle: str) -> bool:
        desk, store = self._desk, self._desk.custodian.store
        parcels, known = store.fragments_of(bundle, desk.identity().address.source), False
        judged = True
        try:
            _check_heads(parcels)
            known = all(desk.custodian.known_signer(parcel) for parcel in parcels)
            seed = base64.b64decode(desk.identity().seal_seed)
            contents = open_bundle(parcels, X25519PrivateKey.from_private_bytes(seed))
            if contents.trust is not None:
                # It proves itself; and it may be what introduces the signer.
                judged = await desk.reader.take_trust(base64.b64decode(contents.trust))
                known = all(desk.custodian.known_signer(parcel) for parcel in parcels)
        except (TrustError, ContractError) as error:
            self._refuse(parcels, error, known=known)
            return False
        if not known and not judged:
            # Later and later: what ends the worker may be the pack, which anybody may have made.
            pause = min(2 * self._unjudged.get(bundle, (0, 0))[1] or 1, MAX_PAUSE_TURNS)
            self._unjudged[bundle] = (self._turn + pause, pause)
            return False
        self._unjudged.pop(bundle, None)
        if not known:
            self._unknown[bundle] = desk.reader.trust_version()
            log.warning("bundle.unknown_signer", bundle=bundle)
            return False
        if not self._pass_on(contents):
            return False
        store.finish([label_of(parcels[0].head)])
        log.info("bundle.opened", bundle=bundle, letters=len(contents.letters), trust=contents.trust is not None)
        return True

    def _pass_on(self, contents: Contents) -> bool:
        reader = self._desk.reader
        for letter in contents.letters:
            raw = letter.envelope.encode()
            if letter.kind == RECEIPT:
                reader.take_receipt(raw)
            elif letter.kind not in DOWN_LETTERS:
                log.warning("bundle.strange_letter", kind=letter.kind)
            elif not reader.take_letter(letter.kind, raw):
                self.problem = "a letter from a bundle could not be stored; it is tried again"
                return False
        self.problem = None
        return True

    def _refuse(self, parcels: Sequence[Parcel], error: TrustError | ContractError, *, known: bool) -> None:
        desk, head = self._desk, parcels[0].head
        log.error("bundle.refused", bundle=head.id, reason=error.reason, message=str(error))
        if known:
            # The courier did make this one; it would be no better a second time.
            desk.custodian.store.finish([label_of(head)])
        else:
            desk.custodian.store.drop([key_of(parcel) for parcel in parcels])
        desk.report(
            EventReport(
                name="bundle.refused",
                severity="high",
                reason=error.reason,
                message=str(error)[:_MAX_LINE],
                details={"bundle": head.id, "origin": head.origin},
            )
        )


def _check_heads(parcels: Sequence[Parcel]) -> None:
    """All fragments must be of one and the same bundle; whoever mixes them could take from each what suits him."""
    labels = {parcel.head.model_copy(update={"fragment": parcels[0].head.fragment}).write() for parcel in parcels}
    counts = {parcel.head.fragment.count for parcel in parcels}
    if len(labels) != 1 or len(counts) != 1:
        raise MessageError(f"the fragments of bundle {parcels[0].head.id} do not belong together", reason="mixed")
