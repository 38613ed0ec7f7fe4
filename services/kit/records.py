"""Records of devices as bucket `devices` holds them: signed by the registry, verified by whoever reads them.

The permission to write the bucket proves nothing: JetStream itself writes into it whatever somebody has it answer to a
subject of the bucket (decision 0008).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

import structlog
from pydantic import ValidationError

from schemas.envelope import Envelope, Signer, Verifier, parse, seal
from schemas.errors import ContractError, EnvelopeError, MessageError
from schemas.ids import Address
from schemas.trust import ServicesDocument
from services.kit.devices import DeviceRecord
from services.kit.errors import SettingsError
from services.kit.folder import StateFolder

log = structlog.get_logger()

RECORD_TYPE = "application/vnd.causeway.device-record+json"
"""Payload type, so that no letter of the registry passes for a record, nor a record for a letter."""
OWNER = "registry"


def seal_record(record: DeviceRecord, signer: Signer) -> bytes:
    """The value that the bucket holds.

    Raises:
        EnvelopeError: `oversized` above 64 KiB.
    """
    return seal(record.model_dump_json().encode(), signer, RECORD_TYPE)


def next_serial(before: int) -> int:
    """Serial of a record written now: the time, so that it also rises if what went before was lost."""
    return max(before + 1, time.time_ns() // 1_000)


class RegistryKeys:
    """The registry's public keys, from the published services document.

    A key that is not known is looked for in a newer document once, so a new key needs no restart of the readers.

    Raises:
        SettingsError: if there is no such document, or no key of the registry in it.
    """

    def __init__(self, state: StateFolder) -> None:
        self._path = state.trust / "services.json"
        self._seen: tuple[int, int] | None = None
        self._keys: dict[str, Verifier] = {}
        self._load()

    def open_record(self, raw: bytes, address: Address) -> DeviceRecord:
        """Read what the bucket holds for a device.

        Raises:
            ContractError: if it is not signed by the registry, no record, or that of another device.
        """
        envelope = parse(raw, RECORD_TYPE)
        self._verify(envelope)
        try:
            record = DeviceRecord.model_validate_json(envelope.body)
        except ValidationError as error:
            raise MessageError(f"read the record of {address}: {error}") from error
        if record.address != address:
            raise MessageError(f"record of {record.address} under the key of {address}", reason="wrong_source")
        return record

    def require(self, signer: Signer) -> Self:
        """Refuse a key that nobody else would believe.

        Raises:
            SettingsError: if the document does not name it.
        """
        if signer.keyid not in self._keys:
            raise SettingsError(
                f"sign device records with key {signer.keyid[:12]}: {self._path} does not name it as the registry's; "
                "publish a services document with it first"
            )
        return self

    def _verify(self, envelope: Envelope) -> None:
        try:
            envelope.verify(self._keys)
        except EnvelopeError as error:
            if error.reason != "unknown_key" or not self._renewed():
                raise
            envelope.verify(self._keys)

    def _renewed(self) -> bool:
        try:
            if _version(self._path) == self._seen:
                return False
            self._load()
        except (OSError, SettingsError) as error:
            log.error("registry_keys.not_read", error=str(error))
            return False
        return True

    def _load(self) -> None:
        try:
            seen = _version(self._path)
            document = ServicesDocument.read(self._path.read_bytes())
            keys = [key.verifier() for key in document.keys if key.service == OWNER]
        except (OSError, ContractError) as error:
            raise SettingsError(
                f"read the registry's public key from {self._path}: {error}; `causeway init` writes it"
            ) from error
        if not keys:
            raise SettingsError(f"read the registry's public key from {self._path}: there is none; publish one")
        self._keys = {key.keyid: key for key in keys}
        self._seen = seen


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
