"""Which service key may sign which kinds: the TUF target `trust/services.json`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.envelope import Verifier
from schemas.events import Message
from schemas.ids import Count, Digest, Identifier, Key32, Ulid

SERVICES_TARGET = "trust/services.json"

SIGNED_KINDS: dict[str, tuple[str, ...]] = {
    "registry": ("welcome", "config", "recall"),
    "courier": ("receipt", "bundle"),
    "ota": ("assign",),
    "scheduler": ("task", "cancel"),
    "aggregator": ("round", "cancel"),
}
"""Kinds that each service may sign in a new platform."""

Kind = Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]


class ServiceKey(Message):
    """One service's key. A higher generation makes every letter of a lower one stale."""

    keyid: Digest
    public: Key32
    service: Identifier
    kinds: Annotated[list[Kind], Field(max_length=32)]
    generation: Count
    seal: Key32 | None = None
    """X25519 key that bundles to this service are sealed to."""

    def verifier(self) -> Verifier:
        """The key, ready to check signatures."""
        return Verifier.from_base64(self.public)


class ServicesDocument(Message):
    """The whole target."""

    v: Literal[1] = 1
    platform: Ulid
    keys: Annotated[list[ServiceKey], Field(max_length=64)]
