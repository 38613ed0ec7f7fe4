"""The platform's own certificate authority, and the server certificate of both listeners."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.kit.folder import StateFolder, write_private
from services.kit.neighbours import key_usage

CA_LIFE = timedelta(days=3_650)
SERVER_LIFE = timedelta(days=825)
_BACKDATE = timedelta(days=1)


def write_authority(state: StateFolder, host: str, now: datetime | None = None) -> None:
    """Write `ca.pem`, `server.pem` and `server.key`; the authority's own key is thrown away after signing.

    A platform that needs another server certificate makes a new authority; devices learn it with their next token.
    """
    moment = now or datetime.now(UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Causeway platform CA")])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), moment, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Causeway bus")])
    certificate = (
        _builder(name, ca_name, key.public_key(), moment, SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_private(state.ca / "ca.pem", ca.public_bytes(Encoding.PEM))
    write_private(state.ca / "server.pem", certificate.public_bytes(Encoding.PEM))
    write_private(state.ca / "server.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + life)
    )


def _names(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ip_address("127.0.0.1")),
    ]
    try:
        address = x509.IPAddress(ip_address(host))
    except ValueError:
        names.append(x509.DNSName(host))
    else:
        if address not in names and not ip_address(host).is_unspecified:
            names.append(address)
    return names
