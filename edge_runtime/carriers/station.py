"""Everything on this device that stores and forwards, put together: for the agent, and for a command beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_runtime.carriers.custodian import Custodian, Post
from edge_runtime.carriers.packer import Packer, Writings
from edge_runtime.carriers.pieces import PieceFolder
from edge_runtime.carriers.store import CarriedStore
from edge_runtime.clock import FlooredClock
from edge_runtime.folder import EdgeFolder
from edge_runtime.identity import Identity
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.settings import CarrierSettings
from edge_runtime.trust.keyring import Keyring
from schemas.depot import TrustState
from schemas.ids import Address


@dataclass(frozen=True, slots=True)
class Ground:
    """What a station stands on.

    Attributes:
        trust: versions of the trust metadata that this device holds.
        refused: letters down that must not come again though the inbox does not hold them.
        linked: whether it talks to the platform itself now.
        detour: whether its own letters should go by carrier.
        arrived: told that a fragment for this device is here.
        news: told that there is something new to hand over, and who has it already.
    """

    folder: EdgeFolder
    settings: CarrierSettings
    outbox: Outbox
    inbox: Inbox
    keyring: Keyring
    clock: FlooredClock
    identity: Callable[[], Identity]
    trust: Callable[[], TrustState]
    refused: Callable[[], Sequence[str]] = lambda: ()
    linked: Callable[[], bool] = lambda: False
    detour: Callable[[], bool] = lambda: True
    arrived: Callable[[], None] = lambda: None
    news: Callable[[Address | None], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Station:
    """The parts."""

    store: CarriedStore
    custodian: Custodian

    def close(self) -> None:
        """Close the file."""
        self.store.close()


def open_station(ground: Ground) -> Station:
    """Open the store and wire the parts.

    Raises:
        OutboxError: if the store cannot be opened.
    """
    settings, store = ground.settings, CarriedStore(ground.folder.carriers)
    packer = Packer(
        Writings(
            store=store,
            outbox=ground.outbox,
            inbox=ground.inbox,
            keyring=ground.keyring,
            clock=ground.clock,
            identity=ground.identity,
            trust=ground.trust,
            refused=ground.refused,
        )
    )
    post = Post(
        store=store,
        packer=packer,
        keyring=ground.keyring,
        identity=ground.identity,
        linked=ground.linked,
        now=ground.clock.now,
        carry_bytes=settings.max_bytes if settings.carry else 0,
        detour=ground.detour,
        arrived=ground.arrived,
        news=ground.news,
    )
    return Station(store, Custodian(post))


def piece_folder(folder: EdgeFolder, settings: CarrierSettings) -> PieceFolder:
    """Where pieces that came by folder are looked for."""
    from edge_runtime.carriers.folder import PIECES, ROOT  # noqa: PLC0415 - it imports this package's larger half

    synced = () if settings.folder is None else (settings.folder / ROOT / PIECES,)
    return PieceFolder(folder.pieces, synced, settings.max_piece_bytes)
