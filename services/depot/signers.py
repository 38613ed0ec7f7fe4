"""Signing keys of trust metadata as PEM files: we make Ed25519, and read P-256 and P-384 too."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from services.kit.errors import SettingsError
from services.kit.folder import write_private


def make_signer(path: Path, password: bytes | None = None) -> CryptoSigner:
    """Make an Ed25519 key and store it, mode 0600, encrypted if there is a password."""
    key = Ed25519PrivateKey.generate()
    protection: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    return CryptoSigner(key)


def load_signer(path: Path, password: bytes | None = None) -> CryptoSigner:
    """Load a private key.

    Raises:
        SettingsError: if it is missing, damaged, of a kind that devices do not verify, or needs another password.
    """
    try:
        raw = path.read_bytes()
        if b"-----BEGIN" not in raw:
            raise SettingsError(f"read signing key {path}: it is no PEM file; name a private key, as models.pem")
        key = load_pem_private_key(raw, password)
    except OSError as error:
        raise SettingsError(
            f"read signing key {path}: {error.strerror}; is the disk with the keys attached?"
        ) from error
    except TypeError as error:
        # cryptography says so both when a password is missing and when one is given for nothing.
        raise SettingsError(
            f"read signing key {path}: {error}; give its password (`--password-file`) only if it is encrypted"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"read signing key {path}: {error}; is it a PEM file, and the password right?") from error
    known = isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1 | SECP384R1)
    )
    if not known:
        raise SettingsError(
            f"read signing key {path}: devices verify Ed25519, P-256 and P-384, not {type(key).__name__}"
        )
    return CryptoSigner(key)


def load_public(path: Path) -> SSlibKey:
    """The public half of a PEM file that holds a public key, or an unencrypted private one.

    Raises:
        SettingsError: as `load_signer`.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"read public key {path}: {error.strerror}; pass a PEM file") from error
    if b"PRIVATE KEY" in raw:
        return load_signer(path).public_key
    try:
        return SSlibKey.from_crypto(load_pem_public_key(raw))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"read public key {path}: {error}; pass a PEM file") from error
