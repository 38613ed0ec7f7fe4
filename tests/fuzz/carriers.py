"""What a carrier makes of a stranger's fragment before it knows whether it is genuine."""

from __future__ import annotations

import base64
import struct
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edge_runtime.carriers.certificates import vouched
from edge_runtime.carriers.names import key_of, label_of
from edge_runtime.carriers.witness import COURIER, Witness
from edge_runtime.trust.keyring import Keyring
from schemas.bundles import BUNDLE_TYPE, Parcel, Way, read_parcel
from schemas.envelope import Signer, seal
from tests.support.carriers import Realm
from tests.support.neighbours import NOW, authority, device


class Carrier:
    """A device with certificates, and heads that it has to judge."""

    def __init__(self, platform: str, parcel: Parcel, signer: Signer) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ca = authority(Path(folder) / "ca", platform)
            Realm(platform=platform).publish(Path(folder))
            self._identity = device("carrier", platform, ca)
            self._witness = Witness(Keyring(Path(folder) / "trust"), lambda: self._identity, self._now)
            shown = device("cam-1", platform, ca).certificate or ""
        self.certificate = x509.load_pem_x509_certificate(shown.encode()).public_bytes(Encoding.DER)
        self._parcel, self._signer = parcel, signer

    def labels(self) -> Sequence[bytes]:
        """Of a device, of one with a certificate, and of the courier."""
        head = self._parcel.head
        certified = {"certificate": base64.b64encode(self.certificate).decode(), "origin": "/fleets/home/devices/cam-1"}
        down = {"origin": COURIER, "destination": self._identity.address.source}
        return [head.model_copy(update=change).write() for change in ({}, certified, down)]

    def signed(self, label: bytes) -> bytes:
        """The head with a signature that holds, so that what lies behind it is reached."""
        return seal(label, self._signer, BUNDLE_TYPE)

    def judge(self, head: bytes) -> object:
        """As `Custodian.judge`, without a disk."""
        length, way = struct.Struct(">I"), Way(hops=1, copies=1).write()
        frame = (b"CWB1", length.pack(len(head)), head, length.pack(len(way)), way, self._parcel.payload)
        parcel = read_parcel(b"".join(frame))
        names = key_of(parcel), label_of(parcel.head).name
        return names, self._witness.check(parcel, "/fleets/home/devices/ann", self._signer.public_key)

    def vouch(self, certificate: bytes) -> object:
        """Whom a certificate in a head speaks for."""
        own = self._identity
        return vouched(certificate, own.neighbours_ca or "", own.platform, own.address, self._now())

    def _now(self) -> datetime:
        return datetime.fromtimestamp(NOW, UTC)
