"""Identifiers that travel in topics, and the bounded field types that every message is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StringConstraints

from schemas.errors import TopicError

IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
IDENTIFIER_RULE = (
    "use 1 to 63 letters, digits, '-' or '_', beginning with a letter or digit (no dots, blanks, slashes or wildcards)"
)
ULID = r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
DIGEST = r"^[0-9a-f]{64}$"
VERSION = r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,63}$"
ENTRY_POINT = r"^[a-z][a-z0-9_-]{0,47}@[0-9]{1,4}$"
WORD = r"^[a-z][a-z0-9_.]{0,62}$"
HOST = r"^[A-Za-z0-9:][A-Za-z0-9.:-]{0,252}$"
PEER = r"^[A-Za-z0-9._:\[\]-]{1,255}:[0-9]{1,5}$"
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER)]
"""Fleet, device, model, job or dataset: one level of a topic."""

Ulid = Annotated[str, StringConstraints(pattern=ULID)]
Digest = Annotated[str, StringConstraints(pattern=DIGEST)]
"""sha256 in lower-case hex."""

Version = Annotated[str, StringConstraints(pattern=VERSION)]
Word = Annotated[str, StringConstraints(pattern=WORD)]
"""A stable machine word: a reason, a step, an event's name."""

Line = Annotated[str, StringConstraints(max_length=512)]
"""A sentence for people."""

EntryPoint = Annotated[str, StringConstraints(pattern=ENTRY_POINT)]
"""Code that the owner of the device installed: `name@version`."""

Base64 = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=49_152)]
Key32 = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")]
"""A raw 32-byte public key in base64."""

Count = Annotated[int, Field(ge=0, le=2**53)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]


def check_identifier(value: str, what: str) -> str:
    """Return `value` if it can be one level of a topic.

    Raises:
        TopicError: naming what is wrong; nats-server drops a client for ever that sends a dot or a blank in a topic.
    """
    if not _IDENTIFIER.fullmatch(value):
        raise TopicError(f"{what} {value[:80]!r} is not an identifier: {IDENTIFIER_RULE}", reason="bad_identifier")
    return value


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """One device of one fleet.

    Raises:
        TopicError: if either part is not an identifier.
    """

    fleet: str
    device: str

    def __post_init__(self) -> None:
        check_identifier(self.fleet, "fleet")
        check_identifier(self.device, "device")

    @property
    def source(self) -> str:
        """CloudEvents source of what the device says, and recipient of what it is told."""
        return f"/fleets/{self.fleet}/devices/{self.device}"

    def __str__(self) -> str:
        return f"{self.fleet}/{self.device}"
