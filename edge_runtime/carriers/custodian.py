"""Judges what comes in, decides what goes out, and answers for every fragment until somebody else does.

Implements `port.Custody` over the store; `meet` begins an exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edge_runtime.carriers.exchange import Exchange
from edge_runtime.carriers.frames import MAX_SUMMARY_BUNDLES, MAX_SUMMARY_DONE
from edge_runtime.carriers.names import FragmentKey, Label, key_of, label_of
from edge_runtime.carriers.packer import Packer
from edge_runtime.carriers.port import Holdings, Limits, Peer, Verdict
from edge_runtime.carriers.routing import Carried, Meeting, Room, Share, admit, facts_of, offers, share
from edge_runtime.carriers.store import CarriedStore
from edge_runtime.carriers.witness import COURIER, Witness
from edge_runtime.errors import TrustError
from edge_runtime.identity import Identity
from edge_runtime.logs import Log
from edge_runtime.trust.keyring import Keyring
from schemas.bundles import BUNDLE_TYPE, BundleHead, Parcel, read_parcel
from schemas.envelope import parse
from schemas.errors import ContractError
from schemas.events import PLATFORM_RECIPIENT
from schemas.ids import Address

log = Log(__name__)

MAX_FRAGMENTS_CARRIED = 2_048
MAX_ARRIVING = 256
"""Fragments to this device that wait for the rest of their bundles."""


@dataclass(frozen=True, slots=True)
class Post:
    """What the custodian works with.

    Attributes:
        linked: whether this device talks to the platform now.
        now: floored, for the ends of certificates.
        carry_bytes: what bundles of others may fill; 0 to take none.
        detour: whether this device's own letters should go by carrier now.
        arrived: told that a fragment for this device is here.
        news: told that there is something new to hand over, and who has it already.
    """

    store: CarriedStore
    packer: Packer
    keyring: Keyring
    identity: Callable[[], Identity]
    linked: Callable[[], bool]
    now: Callable[[], datetime]
    carry_bytes: int
    detour: Callable[[], bool] = lambda: True
    arrived: Callable[[], None] = lambda: None
    news: Callable[[Address | None], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a fragment, and why it was refused if it was."""

    verdict: Verdict
    why: str = ""


class Custodian:
    """Of one device. Every method raises OutboxError if the disk does not do its part; nothing is half done then."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self.store = post.store
        self.packer = post.packer
        self._witness = Witness(post.keyring, post.identity, post.now)

    @property
    def address(self) -> Address:
        """Of this device."""
        return self._post.identity().address

    @property
    def carries(self) -> bool:
        """Whether this device takes what is for others."""
        return bool(self._post.carry_bytes)

    def custody(self) -> dict[str, Any]:
        """What is in custody and what room there is, for the status."""
        room = {"bytes": self._post.carry_bytes, "fragments": MAX_FRAGMENTS_CARRIED}
        return self.store.custody(self.address.source) | {"room": room}

    @property
    def linked(self) -> bool:
        """Whether this device talks to the platform now."""
        return self._post.linked()

    def meet(self, peer: Address, key: bytes | None = None, limits: Limits | None = None) -> Exchange:
        """Begin an exchange with a peer whose address the transport has proven.

        Args:
            peer: who is at the other end.
            key: its raw Ed25519 public key, if its certificate says so.
            limits: per direction.
        """
        if self._post.detour():
            self.packer.pack()
        return Exchange(self, peer, limits or Limits(), key)

    def holdings(self) -> Holdings:
        """See `port.Custody`."""
        carried = self.store.carried()
        # What may only be delivered from here is not named: a peer's copy of it would be good for more.
        has = [one.key for one in carried if one.copies or one.destination == self.address.source]
        return Holdings(
            address=self.address,
            platform=self._post.identity().platform,
            gateway=self._post.linked(),
            has=[*has, *self.store.seen(MAX_SUMMARY_BUNDLES)],
            done=self.store.done(MAX_SUMMARY_DONE),
            room=Limits(),
        )

    def offers(self, peer: Peer) -> list[FragmentKey]:
        """See `port.Custody`."""
        self._believe(peer)
        return offers(self.passing(), self._meeting(peer), has=peer.has, done=peer.done)

    def proofs(self, peer: Peer) -> list[bytes]:
        """See `port.Custody`."""
        # The newest first: of those that it has been told before, it names only so many itself.
        return self.store.proofs(sorted({bundle for bundle, _ in peer.has}, reverse=True), peer.done)

    def copy_for(self, key: FragmentKey, peer: Peer) -> Parcel | None:
        """See `port.Custody`."""
        facts, granted = self._share(key, self._meeting(peer))
        parcel = self.store.load(key) if granted is not None else None
        if parcel is None or granted is None or facts is None:
            return None
        return parcel.on_its_way(hops=facts.hops + 1, copies=max(1, granted.given), age_s=parcel.way.age_s)

    def handed(self, key: FragmentKey, peer: Peer, verdict: Verdict) -> int | None:
        """See `port.Custody`."""
        facts, granted = self._share(key, self._meeting(peer))
        if facts is None:
            return 0 if verdict == "kept" else None
        at_its_end = facts.destination == peer.address.source
        if verdict in {"arrived", "held"} and at_its_end:
            self.store.let_go([key])
            log.info("fragment.delivered", bundle=key[0], mark=key[1], to=str(peer.address))
        if verdict != "kept" or at_its_end:
            return None
        if granted is None or not self.give(facts, granted):
            return 0
        log.info("fragment.handed", bundle=key[0], mark=key[1], to=str(peer.address), copies=granted.given)
        return granted.given

    def give(self, facts: Carried, granted: Share) -> bool:
        """Give up a share; False if there is another share to give by now."""
        return self.store.give(facts.key, was=facts.copies, kept=granted.kept, drop=granted.drop)

    def take(self, parcel: Parcel, peer: Peer) -> Verdict:
        """See `port.Custody`."""
        return self.receive(parcel, peer.address.source, peer.key)

    def receive(self, parcel: Parcel, giver: str, key: bytes | None = None) -> Verdict:
        """Judge and store a fragment, whoever brings it.

        Args:
            parcel: with the way as it comes in.
            giver: a device's address, `/platform` or `folder`; quotas are counted by it.
            key: the giver's raw Ed25519 public key, if it is known.
        """
        judged = self.judge(parcel, giver, key)
        if judged.verdict in {"refused", "full"}:
            head = parcel.head
            told = {"bundle": head.id, "origin": head.origin, "by": giver, "message": judged.why}
            log.warning("fragment.not_taken", verdict=judged.verdict, **told)
        return judged.verdict

    def released(self, key: FragmentKey, copies: int, peer: Peer) -> None:
        """See `port.Custody`."""
        self.store.own_more(key, copies)
        log.debug("fragment.released", bundle=key[0], mark=key[1], by=str(peer.address), copies=copies)
        self._post.news(peer.address)

    def prove(self, head: bytes) -> None:
        """See `port.Custody`."""
        try:
            envelope = parse(head, BUNDLE_TYPE)
            self._post.keyring.verify(envelope, "bundle")
            self.acknowledged(BundleHead.read(envelope.body), head)
        except (TrustError, ContractError) as error:
            log.warning("proof.refused", reason=error.reason, message=str(error))

    def acknowledged(self, head: BundleHead, raw: bytes) -> None:
        """A verified head of the courier tells which bundles are stored."""
        # What it says of this id is said of the bundle by its addressee, and of nobody else's.
        told = [Label(bundle, head.destination, PLATFORM_RECIPIENT) for bundle in head.acknowledges]
        news = self.store.without_proof(told)
        if head.origin == COURIER and head.platform == self._post.identity().platform and news:
            self.store.finish(news, (head.id, raw))
            log.info("bundles.finished", bundles=len(news), by=head.id)

    def known_signer(self, parcel: Parcel) -> bool:
        """Whether the courier's signature on a head holds; what it acknowledges is taken over then.

        Raises:
            TrustError: if the head is certainly not the courier's.
        """
        if not self._witness.courier(parcel):
            return False
        self.acknowledged(parcel.head, parcel.head_bytes)
        return True

    def passing(self) -> list[Carried]:
        """What is here for others."""
        own = self.address.source
        return [one for one in self.store.carried() if one.destination != own]

    def down(self, frame: bytes) -> None:
        """The platform hands this device a fragment: its own, or one to carry.

        Raises:
            ContractError: if it is none.
        """
        parcel = read_parcel(frame)
        if self.receive(parcel, PLATFORM_RECIPIENT) == "kept":
            self.store.own_more(key_of(parcel), parcel.way.copies)
            self._post.news(None)

    def judge(self, parcel: Parcel, giver: str, key: bytes | None = None) -> Judged:
        """As `receive`, with the reason of a refusal."""
        head, own = parcel.head, self.address.source
        if head.origin == own or self.store.is_done(label_of(head)) or self.store.was_seen(key_of(parcel)):
            return Judged("held")
        try:
            verified = self._witness.check(parcel, giver, key)
        except (TrustError, ContractError) as error:
            return Judged("refused", str(error))
        if verified and head.origin == COURIER:
            # It may acknowledge what else is here, too.
            self.acknowledged(head, parcel.head_bytes)
        if head.destination == own:
            return self._arrive(parcel, giver, verified=verified)
        return self._keep(parcel, giver, verified=verified) if self.carries else Judged("refused", "carry is false")

    def _keep(self, parcel: Parcel, giver: str, *, verified: bool) -> Judged:
        """For somebody else."""
        facts = facts_of(parcel, giver, verified=verified)
        known = self.store.facts(facts.key)
        if known is not None:
            if verified and not known.verified:
                self.store.vouch(known.key)
            return Judged("held" if known.copies else "kept")
        room = Room(self._post.carry_bytes, MAX_FRAGMENTS_CARRIED)
        admitted = admit(facts, self.passing(), room)
        if not admitted.taken:
            self.store.drop(admitted.evicted)
            return Judged("full")
        self.store.add([parcel], copies=0, giver=facts.giver, verified=verified, evicted=admitted.evicted)
        for bundle, mark in admitted.evicted:
            log.info("fragment.evicted", bundle=bundle, mark=mark)
        return Judged("kept")

    def _arrive(self, parcel: Parcel, giver: str, *, verified: bool) -> Judged:
        own, store, bundle = self.address.source, self.store, parcel.head.id
        arrived = [one for one in store.carried() if one.destination == own]
        here, key, index = {one.key for one in arrived}, key_of(parcel), parcel.head.fragment.index
        doubtful = store.unverified(own)
        evicted: list[FragmentKey] = []
        if verified:
            # A bundle has one signer: what somebody else signed is not of it.
            evicted = [one for one in doubtful if one[0] == bundle and not self._genuine(one)]
        elif any(one[0] == bundle and one not in doubtful for one in here):
            return Judged("refused", f"bundle {bundle} is here already, signed by the courier")
        stay = here.difference(evicted)
        if key in stay:
            if verified and key in doubtful:
                store.vouch(key)
            return Judged("arrived")
        if any(one.key in stay and one.key[0] == bundle and one.index == index for one in arrived):
            # One of the two is forged, and nobody here knows which; who brings the other keeps it.
            return Judged("refused", f"another fragment {index} of bundle {bundle} waits here for newer trust")
        excess = len(here) - len(evicted) + 1 - MAX_ARRIVING
        if excess > 0:
            # What fills this up may be forged, or never become whole; the newest of the courier's own is worth more.
            spare = [one for one in doubtful if one[0] != bundle] + sorted(
                one for one in here.difference(doubtful) if one[0] < bundle
            )
            if not verified or len(spare) < excess:
                return Judged("full")
            evicted += spare[:excess]
        store.add([parcel], copies=0, giver=giver, verified=verified, evicted=evicted)
        self._post.arrived()
        return Judged("arrived")

    def _genuine(self, key: FragmentKey) -> bool:
        parcel = self.store.load(key)
        try:
            return parcel is not None and self.known_signer(parcel)
        except TrustError:
            return False

    def _believe(self, peer: Peer) -> None:
        """A peer knows best what has reached itself, and what it has called back."""
        theirs = {
            one.label for one in self.passing() if peer.address.source in {one.destination, one.origin} and not one.own
        }
        if over := [label for label in theirs if label.name in peer.done]:
            self.store.finish(sorted(over))

    def _meeting(self, peer: Peer) -> Meeting:
        return Meeting(peer.address.source, gateway=peer.gateway, linked=self._post.linked())

    def _share(self, key: FragmentKey, meeting: Meeting) -> tuple[Carried | None, Share | None]:
        facts = self.store.facts(key)
        return facts, share(facts, meeting) if facts is not None else None
