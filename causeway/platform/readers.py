"""Bus credentials for an operator's own programs, which read letters and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from causeway.platform.init import BACKDATE_S, write_user
from schemas.ids import check_identifier
from schemas.topics import in_pattern
from services.kit.credentials import NKey
from services.kit.errors import RefusedError
from services.kit.folder import SERVICES, StateFolder
from services.kit.permissions import AUDITOR, OPERATOR, SYSTEM_USER, reader_consumer, reader_permissions
from services.kit.streams import IN

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
    """What a program needs to connect."""

    credentials: Path
    inbox_prefix: str
    sources: tuple[Source, ...]


def add_reader(state: StateFolder, name: str, kinds: Sequence[str]) -> Reader:
    """Write credentials with which a program takes letters of these kinds from IN.

    Raises:
        TopicError: if the name or a kind is none.
        RefusedError: if the platform itself uses the name, or there are such credentials already.
        SettingsError: if the platform's account key was moved away.
    """
    check_identifier(name, "name of the program")
    sources = tuple(Source(kind, IN.name, in_pattern(kind), reader_consumer(name, kind)) for kind in kinds)
    credentials = state.creds(name)
    if name in _TAKEN:
        raise RefusedError(f"make credentials for {name}: a part of the platform has that name; take another")
    if credentials.exists():
        raise RefusedError(
            f"make credentials for {name}: {credentials} is there already; delete it, or take another name"
        )
    account = NKey.load(state.bus_keys / "account.nk")
    write_user(state, account, name, reader_permissions(name, kinds), int(time.time()) - BACKDATE_S)
    return Reader(credentials, f"_INBOX_{name}", sources)
