"""Buckets `devices` and `tokens`: the registry's ledger, with a live copy of the devices in memory.

The registry alone may write bucket `devices`, yet it signs what it writes and believes only that: JetStream can be made
to write there (decision 0008).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from nats.errors import Error as NatsError
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from schemas.envelope import Signer, parse
from schemas.errors import ContractError
from schemas.ids import Address
from services.kit.bus import Bus
from services.kit.devices import (
    DeviceBook,
    DeviceRecord,
    OpenRecord,
    address_of,
    check_serial,
    device_key,
    refuse_value,
    report_end,
)
from services.kit.errors import PlatformError
from services.kit.records import RECORD_TYPE, next_serial, seal_record
from services.registry.tokens import TokenRecord

log = structlog.get_logger()

RESTORED_AT_ONCE = 64
NONCE_BYTES = 12


class ConflictError(PlatformError):
    """Somebody else wrote the record in the meantime; read it again."""

    code = "conflict"


@dataclass(frozen=True, slots=True)
class Stored:
    """A record, and the revision that the next change must name."""

    record: DeviceRecord
    revision: int


class Devices:
    """Bucket `devices`. `book` is the same without revisions, for what verifies letters.

    Args:
        open_record: verifies what the bucket holds.
        signer: the registry's letter key.
    """

    def __init__(self, open_record: OpenRecord, signer: Signer) -> None:
        self.book = DeviceBook(open_record)
        self._open_record = open_record
        self._signer = signer
        self._stored: dict[Address, Stored] = {}
        self._overwritten: dict[Address, int] = {}
        """Revision of what stands where this registry's own record should; 0 if nothing does."""
        self._by_key: dict[str, Address] = {}
        self._listeners: list[Callable[[DeviceRecord], None]] = []
        self._kv: KeyValue | None = None
        self._following: asyncio.Task[None] | None = None
        self._watcher: KeyValue.KeyWatcher | None = None

    def get(self, address: Address) -> Stored | None:
        """The newest record that is known here."""
        return self._stored.get(address)

    def all(self) -> list[DeviceRecord]:
        """Every record."""
        return [stored.record for stored in self._stored.values()]

    def addresses(self) -> list[Address]:
        """Every device, in order."""
        return sorted(self._stored)

    def owner_of(self, public_key: str) -> Address | None:
        """The device that has this key and may speak."""
        address = self._by_key.get(public_key)
        stored = self._stored.get(address) if address else None
        return address if stored and stored.record.standing == "enrolled" else None

    def on_change(self, listener: Callable[[DeviceRecord], None]) -> None:
        """Have `listener` called with each new or changed record."""
        self._listeners.append(listener)

    async def follow(self, bus: Bus) -> None:
        """Load the bucket, then keep following it; returns once it is loaded."""
        await self._start(bus)
        bus.on_reconnect(lambda: self._start(bus))

    async def close(self) -> None:
        """Stop following."""
        if self._following is not None:
            self._following.cancel()
        if self._watcher is not None:
            try:
                await self._watcher.stop()  # type: ignore[no-untyped-call]
            except NatsError as error:
                log.debug("devices.watcher_left", error=repr(error))
            self._watcher = None

    async def write(self, record: DeviceRecord, last: int) -> Stored:
        """Store a record if the present one still has revision `last` (0: there is none).

        Raises:
            ConflictError: if not; the present one is known after that.
            nats.errors.Error: if JetStream does not answer.
        """
        assert self._kv is not None, "follow() comes first"
        address = record.address
        present = self._stored.get(address)
        if last != (present.revision if present else 0):
            raise ConflictError(f"write device {address}: revision {last} is not the newest; try again")
        record = record.model_copy(update={"serial": next_serial(present.record.serial if present else 0)})
        replaced = self._overwritten.get(address, last)
        try:
            revision = await self._kv.update(device_key(address), seal_record(record, self._signer), last=replaced)
        except KeyWrongLastSequenceError as error:
            await self._refresh(address)
            raise ConflictError(f"write device {address}: revision {replaced} is not the newest; try again") from error
        return self._learn(record, revision)

    async def restore(self) -> None:
        """Write again what this registry knows where the bucket says something else, or is signed by an earlier key.

        Raises:
            nats.errors.Error: if JetStream does not answer.
        """
        for address in [address for address in self._overwritten if address in self._stored][:RESTORED_AT_ONCE]:
            stored = self._stored[address]
            try:
                await self.write(stored.record, stored.revision)
            except ConflictError as error:
                log.warning("device.not_restored", device=str(address), error=str(error))
            else:
                log.warning("device.restored", device=str(address))

    async def _start(self, bus: Bus) -> None:
        await self.close()
        self._kv = await bus.bucket("devices")
        state = (await bus.js.stream_info("KV_devices")).state
        loaded = asyncio.Event()
        self._watcher = await self._kv.watch(">")
        self._following = asyncio.create_task(
            self._pump(self._watcher, loaded, state.last_seq if state.messages else 0)
        )
        self._following.add_done_callback(lambda task: report_end(bus, task))
        await loaded.wait()
        self.book.ready.set()

    async def _pump(self, watcher: KeyValue.KeyWatcher, loaded: asyncio.Event, newest: int) -> None:
        async for entry in watcher:
            if entry is None:
                loaded.set()
                continue
            self._see(entry.key, entry.value or b"", entry.revision or 0)
            # The watcher's own marker rests on a count that 2.9.10 gets wrong after overwrites.
            if (entry.revision or 0) >= newest:
                loaded.set()

    def _see(self, key: str, value: bytes, revision: int) -> None:
        """Take in what the bucket holds. What replaced a record without being one is noted, to be replaced in turn."""
        try:
            address = address_of(key)
        except ContractError as error:
            refuse_value(key, error)
            return
        present = self._stored.get(address)
        if revision <= max(present.revision if present else 0, self._overwritten.get(address, 0)):
            return
        try:
            record = self._open_record(value, address)
            check_serial(record, present.record if present else None)
        except ContractError as error:
            refuse_value(key, error)
            if present is not None:
                self._overwritten[address] = revision
            return
        self._learn(record, revision)
        if self._signer.keyid not in dict(parse(value, RECORD_TYPE).signatures):
            # While the earlier key still counts; without it nobody would believe the record any more.
            self._overwritten[address] = revision

    async def _refresh(self, address: Address) -> None:
        assert self._kv is not None
        before, key = self._stored.get(address), device_key(address)
        try:
            entry: KeyValue.Entry | None = await self._kv.get(key)
        except KeyNotFoundError as error:
            entry = error.entry
        if self._stored.get(address) is not before:
            return
        revision = entry.revision or 0 if entry else 0
        self._see(key, entry.value or b"" if entry else b"", revision)
        if self._stored.get(address) is before:
            # Foreign, deleted, or from before what the server acknowledged and lost.
            self._overwritten[address] = revision

    def _learn(self, record: DeviceRecord, revision: int) -> Stored:
        present = self._stored.get(record.address)
        if present is not None and (present.record.serial, present.revision) >= (record.serial, revision):
            return present
        if self._overwritten.get(record.address, 0) <= revision:
            self._overwritten.pop(record.address, None)
        stored = self._stored[record.address] = Stored(record, revision)
        if present is not None and self._by_key.get(present.record.public_key) == record.address:
            del self._by_key[present.record.public_key]
        if record.standing == "enrolled":
            self._by_key[record.public_key] = record.address
        self.book.learn(record)
        for listener in self._listeners:
            listener(record)
        return stored


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token's record and its revision."""

    record: TokenRecord
    revision: int


class Tokens:
    """Bucket `tokens`; a record is gone a week after its token could last have been used.

    Encrypted and bound to its key, since the bus keeps neither readers nor writers out of a bucket (decision 0008).
    """

    def __init__(self, kv: KeyValue, secret: bytes) -> None:
        self._kv = kv
        self._cipher = ChaCha20Poly1305(hmac.digest(secret, b"causeway tokens", hashlib.sha256))

    async def add(self, record: TokenRecord) -> None:
        """Store a new token."""
        await self._kv.create(record.token, self._seal(record))

    async def get(self, token: str) -> StoredToken | None:
        """A token's record, None where there is none of this registry's making."""
        try:
            entry = await self._kv.get(token)
        except KeyNotFoundError:
            return None
        value = entry.value or b""
        try:
            raw = self._cipher.decrypt(value[:NONCE_BYTES], value[NONCE_BYTES:], token.encode())
        except (InvalidTag, ValueError):
            log.error("token.refused", token=token)
            return None
        return StoredToken(TokenRecord.model_validate_json(raw), entry.revision or 0)

    async def write(self, record: TokenRecord, last: int) -> None:
        """Store a token's use.

        Raises:
            ConflictError: if another letter was faster.
        """
        try:
            await self._kv.update(record.token, self._seal(record), last=last)
        except KeyWrongLastSequenceError as error:
            raise ConflictError(f"spend token {record.token}: another letter was faster; look again") from error

    def _seal(self, record: TokenRecord) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, record.model_dump_json().encode(), record.token.encode())
