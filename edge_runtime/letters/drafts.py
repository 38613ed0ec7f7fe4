"""Letters as programs hand them over, and what of that no letter can carry. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from ulid import ULID

from edge_runtime.errors import OutboxError
from edge_runtime.letters.shelf import New
from schemas.envelope import MAX_LETTER_BYTES
from schemas.events import Lane, Message, Untyped

ROW_OVERHEAD = 256
"""Bytes that a letter takes beside its data."""
_ENVELOPE_OVERHEAD = 1_200
"""Bytes of the event's other fields and of the envelope, at most."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A letter for `Outbox.add_many`; the fields are those of `Outbox.add`."""

    kind: str
    data: Message
    lane: Lane
    letter_id: str | None = None
    latest: str | None = None


def draft(entry: Entry, now: float) -> New:
    """The letter to be stored.

    Raises:
        OutboxError: `oversized` or `malformed`: nobody could read it at the other end.
    """
    text = _text(entry)
    size = len(text.encode())
    if (size + _ENVELOPE_OVERHEAD) * 4 // 3 > MAX_LETTER_BYTES:
        raise OutboxError(
            f"store a letter {entry.kind} of {size} bytes: more than a letter may carry; send large data by digest",
            reason="oversized",
        )
    letter_id = entry.letter_id or str(ULID())
    return New(letter_id, entry.kind, entry.lane, text, now, size + ROW_OVERHEAD, entry.latest)


def _text(entry: Entry) -> str:
    try:
        text = entry.data.model_dump_json(exclude_none=True, by_alias=True)
        if entry.data.model_extra:
            # As deep as it will lie in the letter: a number or a nesting may be too much for whoever reads it.
            Untyped.model_validate_json(f'{{"data":{text}}}')
    except ValidationError as error:
        raise _malformed(entry, error.errors(include_url=False)[0]["msg"], "send less of it, or by digest") from error
    except ValueError as error:
        raise _malformed(entry, str(error), "send plain numbers, texts, lists and mappings") from error
    # Such a number is written as null; with neither in the text there is nothing to look for.
    if entry.data.model_extra and "null" in text:
        for place, number in _not_finite(entry.data.model_extra, "data"):
            raise _malformed(entry, f"{place} is {number}, which JSON has no number for", "leave it out or send null")
    return text


def _not_finite(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place, float(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{place}.{key}")
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, f"{place}.{index}")


def _malformed(entry: Entry, problem: str, advice: str) -> OutboxError:
    return OutboxError(f"store a letter {entry.kind}: {problem}; {advice}", reason="malformed")
