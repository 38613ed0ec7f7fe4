"""What carriers call fragments and bundles: so that nobody who knows the id of a bundle can take its place. Pure.

An id alone is no name, since whoever has seen it can write it on something else. A fragment is named by what its origin
signed and by the signature, a bundle by its id, its origin and its destination. What is forged is another thing beside
the genuine one.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Annotated

from pydantic import StringConstraints

from schemas.bundles import BundleHead, Parcel
from schemas.envelope import pae

MARK_BYTES = 12
"""Nobody finds a second one with the same mark, which takes 2^96 attempts."""
MARK_CHARS = 16
Mark = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16}$")]

FragmentKey = tuple[str, str]
"""Bundle id and mark."""


def key_of(parcel: Parcel) -> FragmentKey:
    """Names a fragment, whether or not the signature holds."""
    envelope = parcel.envelope
    signatures = b"".join(signature + keyid.encode() for keyid, signature in envelope.signatures)
    return parcel.head.id, _mark(pae(envelope.body, envelope.payload_type) + signatures)


@dataclass(frozen=True, slots=True, order=True)
class Label:
    """A bundle, by those who may say that it is done with: its origin and its destination."""

    bundle: str
    origin: str
    destination: str

    @property
    def name(self) -> str:
        """Short, for summaries and for the store."""
        return _mark(f"{self.bundle} {self.origin} {self.destination}".encode())


def label_of(head: BundleHead) -> Label:
    """The bundle that a head speaks of."""
    return Label(head.id, head.origin, head.destination)


def _mark(named: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(named).digest()[:MARK_BYTES]).decode()
