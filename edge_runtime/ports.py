"""What the parts of the runtime ask of each other. `agent.py` provides it, the tests provide doubles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from edge_runtime.conduct.policy import tightened
from edge_runtime.folder import EdgeFolder
from edge_runtime.settings import EdgeSettings, OwnerLimits
from schemas.aggregator import Artifact
from schemas.events import DownLetter, Lane, Message
from schemas.ids import Address
from schemas.registry import Capabilities, Heartbeat, Twin


class Clock(Protocol):
    """Time that never goes below what signed messages have proven."""

    def now(self) -> datetime:
        """UTC."""


class Sender(Protocol):
    """The way up."""

    def send(
        self,
        kind: str,
        data: Message,
        *,
        lane: Lane | None = None,
        letter_id: str | None = None,
        latest: str | None = None,
    ) -> str:
        """Store a letter in the outbox; durable when this returns, unless the disk fails. Lane None: the kind's own.

        A caller that must not write twice after a crash passes a `letter_id` that it has stored before: an id that the
        outbox knows already is not stored again. With a key `latest`, letters of the same kind and key that were not
        sent yet are given up for this one.

        Returns:
            The letter's ULID.

        Raises:
            OutboxError: if it could not be stored.
        """

    def publish_state(self, kind: str, data: Message) -> None:
        """Send a state message, now or once it can be sent; until then a newer one of its kind takes its place."""

    def send_parcel(self, kind: str, raw: bytes) -> bool:
        """Send a parcel now; False if not connected."""


class Jobs(Protocol):
    """Work in a child process, so that the resident one stays small."""

    async def call(self, job: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Run a job from `edge_runtime.worker.jobs`.

        Raises:
            WorkerError: with the reason and message of the job's own EdgeError, or `crashed`, `timeout`.
        """


class Parcels(Protocol):
    """Bytes named by digest."""

    async def fetch(self, artifact: Artifact, destination: Path) -> None:
        """Fetch an artifact piece by piece, resuming from what `destination` holds; fsynced when this returns.

        Raises:
            FetchError: `timeout`, `wrong_digest`, `disk_full`.
        """


class Shelf(Protocol):
    """Pieces of artifacts that came by folder, by digest."""

    def find(self, digests: Sequence[str], limit: int) -> dict[str, bytes]:
        """At most `limit` of those that are here; each matches its digest."""

    def clear(self, digests: Sequence[str]) -> None:
        """These are in place and need not be kept."""


class Readings(Protocol):
    """What the device knows of itself."""

    def capabilities(self) -> Capabilities:
        """Found once at start, but for the data sets."""

    def heartbeat(self) -> Heartbeat:
        """Read now."""


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to every part that acts on letters."""

    address: Address
    platform: str
    folder: EdgeFolder
    settings: EdgeSettings
    clock: Clock
    sender: Sender
    jobs: Jobs
    """Short jobs: trust, smoke tests, inference."""
    heavy_jobs: Jobs
    """Long jobs: tasks and training."""
    parcels: Parcels
    readings: Readings
    wishes: Callable[[], Twin | None] = lambda: None
    """The platform's newest, if it has any."""

    @property
    def limits(self) -> OwnerLimits:
        """What holds now: the owner's limits, which the platform's wishes may only tighten."""
        return tightened(self.settings.limits, self.wishes())


class LetterHandler(Protocol):
    """Acts on letters of some kinds. `agent.py` calls it once the letter is verified and on disk.

    `handle` may run again for the same letter after a crash and must then have the same effect once. Different slots
    run at the same time, one slot in order. An exception is logged and reported as an event; the letter counts as
    handled.
    """

    kinds: frozenset[str]

    async def handle(self, letter: DownLetter[Any]) -> None:
        """Do what the letter says."""
