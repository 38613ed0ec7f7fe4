"""Devices with certificates, without a platform behind them, and a talk that is simple enough to count."""

from __future__ import annotations

import asyncio
import base64
import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from ulid import ULID

from edge_runtime.carriers.certificates import Neighbour
from edge_runtime.carriers.neighbours import Home, Neighbours
from edge_runtime.errors import EdgeError
from edge_runtime.identity import Identity
from edge_runtime.settings import NeighbourSettings
from schemas.ids import Address
from services.kit.folder import StateFolder
from services.kit.neighbours import Lease, NeighboursAuthority, open_neighbours_authority
from tests.support.platform import until

BEGINS, NOW, ENDS = 1_000_000, 2_000_000, 3_000_000
"""Long ago: what OpenSSL thinks of the time must not matter."""


def authority(folder: Path, platform: str | None = None) -> NeighboursAuthority:
    """The authority of a platform, made at first use."""
    return open_neighbours_authority(StateFolder(folder), platform or str(ULID()), datetime.now(UTC))


def device(
    name: str, platform: str, of: NeighboursAuthority, *, ends: int = ENDS, named: str | None = None
) -> Identity:
    """An enrolled device; `named` puts another device's name into its certificate."""
    identity = Identity(
        fleet="home",
        device=name,
        platform=platform,
        url="mqtts://broker:1",
        root_sha256="0" * 64,
        letter_seed=base64.b64encode(os.urandom(32)).decode(),
        seal_seed=base64.b64encode(os.urandom(32)).decode(),
    )
    lease = Lease(Address("home", named or name), identity.public_key, BEGINS, ends, str(ULID()))
    return identity.model_copy(update={"certificate": of.certify(lease), "neighbours_ca": of.ca_pem})


class Tale:
    """Tells what it has, hears what the other has."""

    def __init__(self, words: list[bytes]) -> None:
        self._words = words
        self.heard: list[bytes] = []
        self.finished = False

    def begin(self) -> list[bytes]:
        return [*self._words, b"."]

    def receive(self, frame: bytes) -> list[bytes]:
        if frame == b"!":
            raise EdgeError("that was rude", reason="bad_exchange")
        if frame == b".":
            self.finished = True
        else:
            self.heard.append(frame)
        return []


class Host:
    """A device that meets others on the loopback."""

    def __init__(self, identity: Identity, *peers: int, now: int = NOW, meet_s: float = 60.0) -> None:
        self.identity = identity
        self.now = now
        self.words: list[bytes] = []
        self.tales: list[tuple[Neighbour, Tale]] = []
        settings = NeighbourSettings(
            enabled=True, interface="lo", peers=[f"127.0.0.1:{port}" for port in peers], meet_s=meet_s
        )
        home = Home(lambda: self.identity, lambda: datetime.fromtimestamp(self.now, UTC), self._talk)
        self.neighbours = Neighbours(settings, home, random.Random(1))
        self._task: asyncio.Task[None] | None = None

    def _talk(self, neighbour: Neighbour) -> Tale:
        tale = Tale(self.words)
        self.tales.append((neighbour, tale))
        return tale

    @property
    def refusals(self) -> dict[str, int]:
        return dict(self.neighbours.refusals)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.neighbours.run())
        await until(lambda: self.neighbours.port and self.neighbours._interfaces.networks, "the device to listen")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        done, _pending = await asyncio.wait({self._task}, timeout=10)
        assert done, "the transport does not end"
        assert self._task.cancelled(), repr(self._task.exception())
