"""What the parts of the carriers ask of each other.

A transport meets peers. At each meeting it asks `Custodian.meet(peer, key)` for an `Exchange`, sends what `begin`
returns, feeds every frame that arrives to `receive` and sends what that returns, until the exchange is finished or the
connection is lost.
Nothing else is needed: what is lost with a connection is offered again at the next meeting.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from edge_runtime.carriers.names import FragmentKey
from schemas.bundles import Parcel
from schemas.ids import Address

Verdict = Literal["kept", "held", "arrived", "full", "refused"]
"""What became of a fragment at the peer: `kept` (in custody now), `held` (it had it, or is done with it), `arrived` (it
is the destination), `full` (no room now), `refused` (never)."""

MAX_FRAME_BYTES = 64 * 1_024
"""Of an exchange; a transport drops a peer that announces more."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one exchange, per direction."""

    fragments: int = 256
    bytes: int = 8 << 20


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom we meet, as the summary says; the address was proven by the transport.

    Attributes:
        address: of the peer.
        gateway: it has a link to the platform now.
        has: fragments that it holds or has let go, so that they need not be sent.
        done: names of bundles that it knows to be finished.
        key: raw Ed25519 public key, where the transport learnt it from a certificate.
    """

    address: Address
    gateway: bool = False
    has: frozenset[FragmentKey] = frozenset()
    done: frozenset[str] = frozenset()
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Holdings:
    """What this device tells of itself at the beginning of an exchange.

    Attributes:
        platform: id of the platform; devices of another one have nothing to say to each other.
        room: fragments and bytes that may be given to it in this exchange.
    """

    address: Address
    platform: str
    gateway: bool
    has: Sequence[FragmentKey]
    done: Sequence[str]
    room: Limits


class Custody(Protocol):
    """What an exchange asks of the custodian. Every change is on disk when the call returns."""

    def holdings(self) -> Holdings:
        """What this device holds now."""

    def offers(self, peer: Peer) -> list[FragmentKey]:
        """What routing would hand to this peer, in the order of sending."""

    def proofs(self, peer: Peer) -> list[bytes]:
        """Heads, signed by the courier, that acknowledge bundles which the peer still holds."""

    def copy_for(self, key: FragmentKey, peer: Peer) -> Parcel | None:
        """The fragment with the way of the peer's copy; None if it is not to be handed over any more."""

    def handed(self, key: FragmentKey, peer: Peer, verdict: Verdict) -> int | None:
        """The peer answered: give up the share that is its own now, and say how many copies that is.

        None where there is nothing to release.
        """

    def take(self, parcel: Parcel, peer: Peer) -> Verdict:
        """Judge and store a fragment; it may not be sprayed before `released`."""

    def released(self, key: FragmentKey, copies: int, peer: Peer) -> None:
        """The peer has given up its share of a fragment that was taken from it."""

    def prove(self, head: bytes) -> None:
        """A head that claims to be signed by the courier: forget what it acknowledges."""


class Transport(Protocol):
    """A way to meet peers, run by the agent while carrying is allowed."""

    name: str

    async def run(self) -> None:
        """Meet whoever can be met, until cancelled."""

    def in_sight(self) -> Collection[Address]:
        """Peers that could be met now."""
