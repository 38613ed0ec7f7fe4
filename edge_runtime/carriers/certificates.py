"""How two devices prove to each other who they are: TLS 1.3 with the certificates that the registry issued.

OpenSSL checks the chain, this module the name and the time: a device without a clock may be years behind, so the end of
a certificate is compared with the clock that signed messages have pushed forward. Where a certificate begins does not
matter; only the registry could have signed it too early.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.utils import CryptographyDeprecationWarning

from edge_runtime.errors import EdgeError
from edge_runtime.identity import Identity
from schemas.errors import ContractError
from schemas.ids import Address
from schemas.neighbours import PROTOCOL, parse_peer_uri

X509_V_FLAG_NO_CHECK_TIME = 0x200000
"""OpenSSL's, which Python's ssl has no name for."""
_UNREADABLE = (
    ValueError,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
    CryptographyDeprecationWarning,
)
"""What `cryptography` raises of a certificate that it cannot read; not all of them are ValueErrors, and the warning is
one where warnings are errors."""


class NeighbourError(EdgeError):
    """No meeting with this peer; `reason` says why and is counted."""

    reason = "neighbour"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Who is at the other end, proven.

    Attributes:
        key: raw Ed25519 public key, the one that signs its letters.
        expires: end of its certificate.
    """

    address: Address
    key: bytes
    expires: datetime


def recognise(certificate: bytes | None, platform: str, own: Address, now: datetime) -> Neighbour:
    """Who shows this certificate (DER), whose chain OpenSSL has checked.

    Raises:
        NeighbourError: `no_certificate`, `bad_certificate`, `wrong_platform`, `expired`, or `own_name` if it is ours.
    """
    if certificate is None:
        raise NeighbourError("the peer showed no certificate", reason="no_certificate")
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        theirs, address = parse_peer_uri(uri)
        key = parsed.public_key()
        expires = parsed.not_valid_after_utc
    except (*_UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension, ContractError) as error:
        raise NeighbourError(f"the peer's certificate names no device: {error}", reason="bad_certificate") from error
    if not isinstance(key, Ed25519PublicKey):
        raise NeighbourError(f"the certificate of {address} is not of an Ed25519 key", reason="bad_certificate")
    if theirs != platform:
        raise NeighbourError(f"{address} belongs to platform {theirs}", reason="wrong_platform")
    if address == own:
        raise NeighbourError(f"the peer is {address} as well: this device itself, or a copy of it", reason="own_name")
    if expires <= now:
        raise NeighbourError(f"the certificate of {address} ended at {expires.isoformat()}", reason="expired")
    return Neighbour(address, key.public_bytes_raw(), expires)


def vouched(certificate: bytes, ca_pem: str, platform: str, own: Address, now: datetime) -> Neighbour:
    """Who a certificate (DER) speaks for that came with a bundle: the chain is checked here.

    Raises:
        NeighbourError: as `recognise`, or `unknown_ca`.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        authorities = x509.load_pem_x509_certificates(ca_pem.encode())
    except _UNREADABLE as error:
        raise NeighbourError(f"a certificate cannot be read: {error}", reason="bad_certificate") from error
    if not any(_issued(parsed, authority) for authority in authorities):
        raise NeighbourError("a certificate is not of this platform", reason="unknown_ca")
    return recognise(certificate, platform, own, now)


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (*_UNREADABLE, TypeError, InvalidSignature):
        return False
    return True


def contexts(identity: Identity) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For accepting and for dialling.

    Raises:
        NeighbourError: `no_certificate` if this device has none yet, `bad_certificate` if what it has is of no use.
    """
    if identity.certificate is None or identity.neighbours_ca is None:
        raise NeighbourError(
            "this device has no certificate for neighbours yet; it comes with the next renewal of its credentials",
            reason="no_certificate",
        )
    try:
        with _key_file(identity) as path:
            return (
                _context(ssl.PROTOCOL_TLS_SERVER, path, identity.neighbours_ca),
                _context(ssl.PROTOCOL_TLS_CLIENT, path, identity.neighbours_ca),
            )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise NeighbourError(
            f"use this device's certificate for neighbours: {error}; `causeway-edge enrol --again` brings a new one",
            reason="bad_certificate",
        ) from error


def _context(protocol: int, path: str, ca_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The name is in the certificate and not in the address.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= X509_V_FLAG_NO_CHECK_TIME
    context.load_verify_locations(cadata=ca_pem)
    context.load_cert_chain(path)
    context.set_alpn_protocols([PROTOCOL])
    # Every meeting proves itself anew: a ticket would outlive the certificate that it came from.
    context.options |= ssl.OP_NO_TICKET
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


@contextmanager
def _key_file(identity: Identity) -> Iterator[str]:
    """Key and certificate as the file that OpenSSL wants: in memory where that can be, else of mode 0600 and brief."""
    assert identity.certificate is not None
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(identity.letter_seed))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + identity.certificate.encode()
    if hasattr(os, "memfd_create"):
        descriptor, kept = os.memfd_create("neighbour", os.MFD_CLOEXEC), None
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp()
        kept = Path(path)
    try:
        os.write(descriptor, pem)
        yield path
    finally:
        os.close(descriptor)
        if kept is not None:
            kept.unlink()
