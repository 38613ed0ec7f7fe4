"""The frames of an exchange: one letter for the kind, then JSON, or the fragment as it travels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

from pydantic import Field, StringConstraints

from edge_runtime.carriers.names import MARK_CHARS, FragmentKey, Mark
from edge_runtime.carriers.port import MAX_FRAME_BYTES, Verdict
from edge_runtime.errors import EdgeError
from schemas.bundles import MAX_COPIES
from schemas.errors import ContractError
from schemas.events import Message
from schemas.ids import Count, Identifier, Ulid

SUMMARY, PROOF, FRAGMENT, ANSWER, RELEASE, END = b"S", b"P", b"F", b"A", b"R", b"E"
MAX_SUMMARY_BUNDLES = 800
MAX_SUMMARY_FRAGMENTS = 1_800
MAX_SUMMARY_DONE = 512
"""With the bundles it fits into one frame. What is left out is at worst sent once more."""
MAX_PROOFS = 16


M = TypeVar("M", bound=Message)


class ExchangeError(EdgeError):
    """The peer does not keep to the protocol; drop the connection."""

    reason = "bad_exchange"


class Summary(Message):
    """First frame of both sides."""

    v: Literal[2] = 2
    """2: fragments are named by their marks."""
    fleet: Identifier
    device: Identifier
    platform: Ulid
    gateway: bool = False
    has: Annotated[
        dict[Ulid, Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_-]{16}){1,1800}$")]],
        Field(max_length=MAX_SUMMARY_BUNDLES),
    ] = {}
    """Bundle to the marks of its fragments, one behind the other."""
    done: Annotated[list[Mark], Field(max_length=MAX_SUMMARY_DONE)] = []
    """Names of bundles."""
    room_fragments: Count
    room_bytes: Count


class Answer(Message):
    """What became of one fragment."""

    id: Ulid
    mark: Mark
    verdict: Verdict


class Release(Message):
    """The sender's share is the receiver's now."""

    id: Ulid
    mark: Mark
    copies: Annotated[int, Field(ge=0, le=MAX_COPIES)]


def by_bundle(keys: Iterable[FragmentKey]) -> dict[str, str]:
    """Keys as the summary writes them; of too many the first ones."""
    found: dict[str, str] = {}
    for bundle, mark in itertools.islice(keys, MAX_SUMMARY_FRAGMENTS):
        if bundle in found or len(found) < MAX_SUMMARY_BUNDLES:
            found[bundle] = found.get(bundle, "") + mark
    return found


def keys(has: dict[str, str]) -> frozenset[FragmentKey]:
    """What `by_bundle` wrote."""
    return frozenset(
        (bundle, marks[at : at + MARK_CHARS])
        for bundle, marks in has.items()
        for at in range(0, len(marks), MARK_CHARS)
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
