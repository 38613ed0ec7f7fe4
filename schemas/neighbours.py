"""Devices of one platform that meet on a LAN: how their certificates name them, how they are found, what they say.

Discovery is DNS-SD over multicast DNS (RFC 6762, 6763). Between two devices runs TLS 1.3 with certificates of both;
inside it, frames: a length (4 bytes, big endian, at least 1) and that many bytes, which an exchange makes and reads.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.errors import ContractError, MessageError
from schemas.ids import ULID, Address

SERVICE_TYPE = "_causeway._tcp.local."
PROTOCOL = "causeway-neighbour/1"
"""Application protocol of the TLS connection (ALPN, RFC 7301)."""
MAX_TXT_BYTES = 255
LENGTH = struct.Struct(">I")
_VERSION = "1"
_HASH_CHARS = 16
_URI = re.compile(r"causeway:///([^/]+)/([^/]+)/([^/]+)")
_ULID = re.compile(ULID)


def peer_uri(platform: str, address: Address) -> str:
    """What a device's certificate says it is (subject alternative name)."""
    return f"causeway:///{platform}/{address.fleet}/{address.device}"


def parse_peer_uri(uri: str) -> tuple[str, Address]:
    """Platform and device of a certificate's name.

    Raises:
        MessageError: if it is no such name.
    """
    match = _URI.fullmatch(uri[:400])
    if match is None or not _ULID.fullmatch(match[1]):
        raise MessageError(f"{uri[:100]!r} names no device of a platform", reason="malformed")
    try:
        return match[1], Address(match[2], match[3])
    except ContractError as error:
        raise MessageError(f"{uri[:100]!r} names no device: {error}", reason="malformed") from error


def platform_hash(platform: str) -> str:
    """What a device tells everybody on the LAN of its platform: enough to find its own, and no name."""
    return hashlib.sha256(f"causeway platform {platform}".encode()).hexdigest()[:_HASH_CHARS]


@dataclass(frozen=True, slots=True)
class Announcement:
    """The TXT record of a device's service; unproven until its certificate is seen."""

    platform_hash: str
    address: Address

    def properties(self) -> dict[str, str]:
        """As a TXT record."""
        return {
            "v": _VERSION,
            "p": self.platform_hash,
            "f": self.address.fleet,
            "d": self.address.device,
        }

    @classmethod
    def parse(cls, properties: Mapping[bytes, bytes | None]) -> Announcement:
        """Read a TXT record.

        Raises:
            MessageError: `oversized`, `unsupported_version` or `malformed`.
        """
        size = sum(len(key) + len(value or b"") + 2 for key, value in properties.items())
        if size > MAX_TXT_BYTES:
            raise MessageError(f"TXT record of {size} bytes exceeds {MAX_TXT_BYTES}", reason="oversized")
        try:
            fields = {key.decode("ascii"): (value or b"").decode("ascii") for key, value in properties.items()}
        except UnicodeDecodeError as error:
            raise MessageError("the TXT record is not ASCII", reason="malformed") from error
        if fields.get("v") != _VERSION:
            raise MessageError(
                f"version {fields.get('v')!r} of the announcement is not {_VERSION}", reason="unsupported_version"
            )
        if not re.fullmatch(f"[0-9a-f]{{{_HASH_CHARS}}}", fields.get("p", "")):
            raise MessageError("the announcement names no platform", reason="malformed")
        try:
            return cls(fields["p"], Address(fields.get("f", ""), fields.get("d", "")))
        except ContractError as error:
            raise MessageError(f"the announcement names no device: {error}", reason="malformed") from error


def instance_name(announcement: Announcement) -> str:
    """Name of a device's service instance: a DNS label of at most 63 bytes, the same at each start."""
    named = f"{announcement.platform_hash} {announcement.address}".encode()
    return f"cw-{hashlib.sha256(named).hexdigest()[:24]}.{SERVICE_TYPE}"
