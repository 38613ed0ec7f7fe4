"""Bus credentials for an operator's own programs, to read letters; what else they reach is in docs/integration.md."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from causeway.platform.init import BACKDATE_S, write_user
from schemas.ids import check_identifier
from schemas.topics import in_pattern
from services.kit.credentials import NKey
from services.kit.errors import RefusedError
from services.kit.folder import SERVICES, StateFolder
from services.kit.permissions import AUDITOR, OPERATOR, SYSTEM_USER, reader_consumer, reader_permissions
from services.kit.streams import IN

DAY_S = 86_400
READER_DAYS = 365
_TAKEN = frozenset({*SERVICES, AUDITOR, OPERATOR, SYSTEM_USER})


@dataclass(frozen=True, slots=True)
class Source:
    """Where a program finds the letters of one kind."""

    kind: str
    stream: str
    subject: str
    consumer: str
    """Durable name that it must give its consumer."""


@dataclass(frozen=True, slots=True)
class Reader:
    """What a program needs to connect, until `expires`."""

    credentials: Path
    expires: str
    inbox_prefix: str
    sources: tuple[Source, ...]


def add_reader(state: StateFolder, name: str, kinds: Sequence[str], days: int = READER_DAYS) -> Reader:
    """Write credentials with which a program takes letters of these kinds from IN, in place of its earlier ones.

    Those stay good until their own end: nothing takes them back.

    Raises:
        TopicError: if the name or a kind is none.
        RefusedError: if the platform itself uses the name.
        SettingsError: if the platform's account key was moved away.
    """
    check_identifier(name, "name of the program")
    sources = tuple(Source(kind, IN.name, in_pattern(kind), reader_consumer(name, kind)) for kind in kinds)
    if name in _TAKEN:
        raise RefusedError(f"make credentials for {name}: a part of the platform has that name; take another")
    account = NKey.load(state.bus_keys / "account.nk")
    now = int(time.time())
    expires = now + days * DAY_S
    write_user(state, account, name, reader_permissions(name, kinds), now - BACKDATE_S, expires)
    return Reader(state.creds(name), datetime.fromtimestamp(expires, UTC).isoformat(), f"_INBOX_{name}", sources)
