"""The authority by which devices of one platform recognise each other on a LAN: a certificate each (decision 0014).

It says only "this key is this device's, until then". The registry signs it with a key that signs nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from schemas.ids import Address
from schemas.neighbours import peer_uri
from services.kit.errors import SettingsError
from services.kit.folder import StateFolder, write_private

CA_LIFE = timedelta(days=3_650)
_BACKDATE = timedelta(days=1)
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Causeway neighbours CA")])


@dataclass(frozen=True, slots=True)
class Lease:
    """Whom a certificate names, and for how long (seconds since 1970)."""

    address: Address
    public_key: bytes
    """Raw Ed25519, the key that signs the device's letters."""
    begins: int
    ends: int
    identity: str
    """What the certificate answers; the same one gives the same certificate again."""


class NeighboursAuthority:
    """Signs certificates of devices."""

    def __init__(self, platform: str, key: Ed25519PrivateKey, ca_pem: str) -> None:
        self._platform = platform
        self._key = key
        self.ca_pem = ca_pem
        """What devices trust: the certificate of this key, and of earlier ones if an operator adds them."""

    def certify(self, lease: Lease) -> str:
        """A device's certificate in PEM."""
        named = f"{self._platform} {lease.address} {lease.identity}".encode()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(_NAME)
            .public_key(Ed25519PublicKey.from_public_bytes(lease.public_key))
            # 20 octets with the first bit clear (RFC 5280, 4.1.2.2).
            .serial_number(int.from_bytes(hashlib.sha256(named).digest()[:20], "big") >> 1)
            .not_valid_before(datetime.fromtimestamp(lease.begins, UTC))
            .not_valid_after(datetime.fromtimestamp(lease.ends, UTC))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(sign_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(peer_uri(self._platform, lease.address))]),
                critical=True,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, None)
        )
        return certificate.public_bytes(Encoding.PEM).decode()


def write_neighbours_authority(state: StateFolder, now: datetime) -> None:
    """Make the key and its certificate: `keys/registry/neighbours-ca.{key,pem}`."""
    key = Ed25519PrivateKey.generate()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    write_private(state.neighbours_ca, certificate.public_bytes(Encoding.PEM))
    # Last: its presence says that both are there.
    write_private(state.neighbours_key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def open_neighbours_authority(state: StateFolder, platform: str, now: datetime) -> NeighboursAuthority:
    """The platform's authority; a platform that was initialised before there was one gets it now.

    Raises:
        SettingsError: if a file is damaged, or the key is not that of the first certificate.
    """
    if not state.neighbours_key.exists():
        write_neighbours_authority(state, now)
    try:
        key = load_pem_private_key(state.neighbours_key.read_bytes(), None)
        ca_pem = state.neighbours_ca.read_text()
        newest = x509.load_pem_x509_certificates(ca_pem.encode())[0]
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(
            f"read the authority of neighbours {state.neighbours_key}: {error}; restore it and "
            f"{state.neighbours_ca.name} beside it, or move both away to have a new one made (devices meet again after "
            "their next renewal)"
        ) from error
    if not isinstance(key, Ed25519PrivateKey) or newest.public_key() != key.public_key():
        raise SettingsError(
            f"read the authority of neighbours {state.neighbours_key}: the first certificate in "
            f"{state.neighbours_ca.name} is not that of this Ed25519 key; restore the two together"
        )
    return NeighboursAuthority(platform, key, ca_pem)


def key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    """What a key may do: sign certificates, or shake hands."""
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
