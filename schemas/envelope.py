"""DSSE envelopes with Ed25519: what a letter travels in (DSSE v1.0.2, github.com/secure-systems-lab/dsse).

`cryptography` alone, since the resident agent has no room for a signing framework; the tests compare the vectors with
securesystemslib.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from schemas.errors import EnvelopeError

PAYLOAD_TYPE = "application/cloudevents+json"
MAX_LETTER_BYTES = 65_536
MAX_SIGNATURES = 4
_MAX_KEYID = 128


def pae(body: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Pre-authentication encoding: what is signed (DSSE protocol.md)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def key_id(public_key: bytes) -> str:
    """Name of a key: sha256 of its 32 raw bytes, in hex."""
    return hashlib.sha256(public_key).hexdigest()


class Signer:
    """An Ed25519 private key with its name."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._key = private_key
        self.public_key: bytes = private_key.public_key().public_bytes_raw()
        self.keyid = key_id(self.public_key)

    @classmethod
    def from_seed(cls, seed: bytes) -> Signer:
        """Build from the 32-byte seed."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def generate(cls) -> Signer:
        """A new random key."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes; written to files of mode 0600 only."""
        return self._key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64 bytes of signature over `message`."""
        return self._key.sign(message)


class Verifier:
    """An Ed25519 public key, parsed once.

    Raises:
        EnvelopeError: if the 32 bytes are not a key.
    """

    def __init__(self, public_key: bytes) -> None:
        try:
            self._key = Ed25519PublicKey.from_public_bytes(public_key)
        except ValueError as error:
            raise EnvelopeError("a public key must be 32 raw bytes of Ed25519", reason="bad_key") from error
        self.public_key = public_key
        self.keyid = key_id(public_key)

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """Read the form that messages carry."""
        return cls(_unbase64(text, "public key"))

    def holds(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature over `message` is this key's."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed, not yet verified envelope.

    Attributes:
        body: the signed bytes.
        signatures: pairs of key id and 64-byte signature.
        payload_type: signed with the body, so that one use of a key cannot pass for another.
    """

    body: bytes
    signatures: tuple[tuple[str, bytes], ...]
    payload_type: str = PAYLOAD_TYPE

    def verify(self, keys: Mapping[str, Verifier]) -> str:
        """Check the first signature whose key is in `keys`.

        Returns:
            The id of the key that signed.

        Raises:
            EnvelopeError: `unknown_key` if no signature is by one of `keys`, `bad_signature` if it does not hold.
        """
        for keyid, signature in self.signatures:
            verifier = keys.get(keyid)
            if verifier is None:
                continue
            if verifier.holds(signature, pae(self.body, self.payload_type)):
                return keyid
            raise EnvelopeError(f"signature by key {keyid[:12]} does not hold", reason="bad_signature")
        names = ", ".join(keyid[:12] for keyid, _ in self.signatures)
        raise EnvelopeError(f"no signature by a known key (signed by {names})", reason="unknown_key")


def seal(body: bytes, signer: Signer, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Sign `body` and wrap it.

    Raises:
        EnvelopeError: `oversized` if the result would exceed 64 KiB.
    """
    signature = base64.b64encode(signer.sign(pae(body, payload_type))).decode()
    payload = base64.b64encode(body).decode()
    # The type is a constant, every other part base64 or hex, so nothing needs escaping.
    raw = (
        f'{{"payloadType":"{payload_type}","payload":"{payload}",'
        f'"signatures":[{{"keyid":"{signer.keyid}","sig":"{signature}"}}]}}'
    ).encode()
    _bounded(raw)
    return raw


def parse(raw: bytes, payload_type: str = PAYLOAD_TYPE) -> Envelope:
    """Read an envelope without trusting it.

    Raises:
        EnvelopeError: `oversized` above 64 KiB, else `bad_envelope`.
    """
    _bounded(raw)
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise EnvelopeError("not JSON: expected a DSSE envelope") from error
    if not isinstance(fields, dict) or fields.get("payloadType") != payload_type:
        raise EnvelopeError(f"not a DSSE envelope of {payload_type}")
    listed = fields.get("signatures")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SIGNATURES:
        raise EnvelopeError(f"an envelope needs 1 to {MAX_SIGNATURES} signatures")
    signatures = tuple(_signature(entry) for entry in listed)
    return Envelope(_unbase64(fields.get("payload"), "payload"), signatures, payload_type)


def _signature(entry: Any) -> tuple[str, bytes]:
    if not isinstance(entry, dict):
        raise EnvelopeError("a signature must be an object with keyid and sig")
    keyid = entry.get("keyid")
    if not isinstance(keyid, str) or not 0 < len(keyid) <= _MAX_KEYID or not (keyid.isascii() and keyid.isprintable()):
        raise EnvelopeError(f"a signature needs a keyid of 1 to {_MAX_KEYID} printable ASCII characters")
    signature = _unbase64(entry.get("sig"), "sig")
    if len(signature) != 64:
        raise EnvelopeError(f"an Ed25519 signature has 64 bytes, got {len(signature)}")
    return keyid, signature


def _unbase64(text: object, what: str) -> bytes:
    if not isinstance(text, str):
        raise EnvelopeError(f"{what} must be base64 text")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EnvelopeError(f"{what} is not base64") from error
    # Two spellings of the same bytes would let a changed byte pass.
    if base64.b64encode(raw) != text.encode():
        raise EnvelopeError(f"{what} is not canonical base64")
    return raw


def _bounded(raw: bytes) -> None:
    if len(raw) > MAX_LETTER_BYTES:
        raise EnvelopeError(
            f"letter of {len(raw)} bytes exceeds {MAX_LETTER_BYTES}: send large data by digest", reason="oversized"
        )
