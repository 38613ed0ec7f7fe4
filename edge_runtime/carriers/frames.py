"""The frames of an exchange: one letter for the kind, then JSON, or the fragment as it travels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

from pydantic import Field, StringConstraints

from edge_runtime.carriers.port import MAX_FRAME_BYTES, FragmentKey, Verdict
from edge_runtime.errors import EdgeError
from schemas.bundles import MAX_COPIES, MAX_FRAGMENTS
from schemas.errors import ContractError
from schemas.events import Message
from schemas.ids import Count, Identifier, Ulid

SUMMARY, PROOF, FRAGMENT, ANSWER, RELEASE, END = b"S", b"P", b"F", b"A", b"R", b"E"
MAX_SUMMARY_BUNDLES = 800
MAX_SUMMARY_DONE = 512
"""With the bundles it fits into one frame. What is left out is at worst sent once more."""
MAX_PROOFS = 16


M = TypeVar("M", bound=Message)


class ExchangeError(EdgeError):
    """The peer does not keep to the protocol; drop the connection."""

    reason = "bad_exchange"


class Summary(Message):
    """First frame of both sides."""

    v: Literal[1] = 1
    fleet: Identifier
    device: Identifier
    platform: Ulid
    gateway: bool = False
    has: Annotated[
        dict[Ulid, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,16}$")]],
        Field(max_length=MAX_SUMMARY_BUNDLES),
    ] = {}
    """Bundle to its fragments, bit n for index n, in hex."""
    done: Annotated[list[Ulid], Field(max_length=MAX_SUMMARY_DONE)] = []
    room_fragments: Count
    room_bytes: Count


class Answer(Message):
    """What became of one fragment."""

    id: Ulid
    index: Annotated[int, Field(ge=0, lt=MAX_FRAGMENTS)]
    verdict: Verdict


class Release(Message):
    """The sender's share is the receiver's now."""

    id: Ulid
    index: Annotated[int, Field(ge=0, lt=MAX_FRAGMENTS)]
    copies: Annotated[int, Field(ge=0, le=MAX_COPIES)]


def bits(keys: Iterable[FragmentKey]) -> dict[str, str]:
    """Keys as the summary writes them; of too many bundles the first ones."""
    found: dict[str, int] = {}
    for bundle, index in keys:
        if bundle in found or len(found) < MAX_SUMMARY_BUNDLES:
            found[bundle] = found.get(bundle, 0) | 1 << index
    return {bundle: f"{mask:x}" for bundle, mask in found.items()}


def keys(has: dict[str, str]) -> frozenset[FragmentKey]:
    """What `bits` wrote."""
    return frozenset(
        (bundle, index) for bundle, mask in has.items() for index in range(MAX_FRAGMENTS) if int(mask, 16) >> index & 1
    )


def split(frame: bytes) -> tuple[bytes, bytes]:
    """Kind and body.

    Raises:
        ExchangeError: if it is too long or empty.
    """
    if not 1 <= len(frame) <= MAX_FRAME_BYTES:
        raise ExchangeError(f"a frame of {len(frame)} bytes; allowed are 1 to {MAX_FRAME_BYTES}")
    return frame[:1], frame[1:]


def read(model: type[M], body: bytes) -> M:
    """Parse the JSON of a frame.

    Raises:
        ExchangeError: if it does not fit.
    """
    try:
        return model.read(body)
    except ContractError as error:
        raise ExchangeError(f"a frame that is no {model.__name__.lower()}: {error}") from error
