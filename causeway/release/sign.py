"""Signing a staged release, by one person with one key, on that person's machine."""

from __future__ import annotations

from pathlib import Path

from causeway.release.files import ReleaseFile
from services.depot.signers import load_signer
from services.kit.errors import RefusedError


def sign(release: ReleaseFile, key: Path, password: bytes | None = None) -> tuple[ReleaseFile, list[str]]:
    """Add a key's signature to every role that it may sign; signing twice is harmless.

    Returns:
        The release with the signatures, and the roles that were signed.

    Raises:
        RefusedError: if the key may sign nothing in it.
        SettingsError: if the key cannot be read.
    """
    signer = load_signer(key, password)
    keyid = signer.public_key.keyid
    roles = dict(release.roles)
    signed = []
    for name, staged in release.roles.items():
        if keyid not in staged.keyids:
            continue
        metadata = staged.parsed()
        metadata.sign(signer, append=True)
        roles[name] = staged.model_copy(update={"metadata": metadata.to_dict()})
        signed.append(staged.role)
    if not signed:
        wanted = "; ".join(
            f"{staged.role}: {', '.join(known[:12] for known in staged.keyids)}" for staged in release.roles.values()
        )
        raise RefusedError(
            f"sign with {key}: its key {keyid[:12]} may sign no role of this release ({wanted}); leave it out"
        )
    return release.model_copy(update={"roles": roles}), signed
