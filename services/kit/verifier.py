"""Verifying signatures where there are many: libsodium takes half the time of OpenSSL, and lets other threads work."""

from __future__ import annotations

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from schemas.envelope import Verifier

SIGNATURE_BYTES = 64


class SodiumVerifier(Verifier):
    """A public key. Refuses what OpenSSL refuses, and keys of small order besides (RFC 8032, 5.1.7)."""

    def holds(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature over `message` is this key's."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        try:
            crypto_sign_open(signature + message, self.public_key)
        except (BadSignatureError, ValueError):
            return False
        return True
