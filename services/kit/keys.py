"""A service's letter key: 32 bytes of seed and its generation, in one small file."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from schemas.envelope import Signer
from services.kit.errors import SettingsError
from services.kit.folder import write_private


@dataclass(frozen=True, slots=True)
class LetterKey:
    """What a service signs letters with."""

    signer: Signer
    generation: int
    seal_seed: bytes | None = None
    """X25519 seed of a service that bundles are sealed to."""

    @property
    def seal_key(self) -> X25519PrivateKey | None:
        """What opens bundles to this service."""
        return None if self.seal_seed is None else X25519PrivateKey.from_private_bytes(self.seal_seed)


def write_letter_key(path: Path, key: LetterKey) -> None:
    """Store a key, mode 0600."""
    seed = base64.b64encode(key.signer.seed).decode()
    fields: dict[str, str | int] = {"seed": seed, "generation": key.generation}
    if key.seal_seed is not None:
        fields["seal_seed"] = base64.b64encode(key.seal_seed).decode()
    write_private(path, json.dumps(fields).encode())


def read_letter_key(path: Path) -> LetterKey:
    """Load a key.

    Raises:
        SettingsError: if it is missing or damaged.
    """
    try:
        fields = json.loads(path.read_bytes())
        seal_seed = base64.b64decode(fields["seal_seed"]) if "seal_seed" in fields else None
        return LetterKey(Signer.from_seed(base64.b64decode(fields["seed"])), int(fields["generation"]), seal_seed)
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise SettingsError(f"read letter key {path}: {error!r}; `causeway init` writes it") from error
