"""A service's letter key: 32 bytes of seed and its generation, in one small file."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path

from schemas.envelope import Signer
from services.kit.errors import SettingsError
from services.kit.folder import write_private


@dataclass(frozen=True, slots=True)
class LetterKey:
    """What a service signs letters with."""

    signer: Signer
    generation: int


def write_letter_key(path: Path, key: LetterKey) -> None:
    """Store a key, mode 0600."""
    seed = base64.b64encode(key.signer.seed).decode()
    write_private(path, json.dumps({"seed": seed, "generation": key.generation}).encode())


def read_letter_key(path: Path) -> LetterKey:
    """Load a key.

    Raises:
        SettingsError: if it is missing or damaged.
    """
    try:
        fields = json.loads(path.read_bytes())
        return LetterKey(Signer.from_seed(base64.b64decode(fields["seed"])), int(fields["generation"]))
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise SettingsError(f"read letter key {path}: {error!r}; `causeway init` writes it") from error
