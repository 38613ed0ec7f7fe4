"""Buckets `devices` and `tokens`: the registry's ledger, with a live copy of the devices in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from schemas.ids import Address
from services.kit.bus import Bus
from services.kit.devices import DeviceBook, DeviceRecord, device_key, report_end
from services.kit.errors import PlatformError
from services.registry.tokens import TokenRecord

log = structlog.get_logger()


class ConflictError(PlatformError):
    """Somebody else wrote the record in the meantime; read it again."""

    code = "conflict"


@dataclass(frozen=True, slots=True)
class Stored:
    """A record, and the revision that the next change must name."""

    record: DeviceRecord
    revision: int


class Devices:
    """Bucket `devices`. `book` is the same without revisions, for what verifies letters."""

    def __init__(self) -> None:
        self.book = DeviceBook()
        self._stored: dict[Address, Stored] = {}
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
        key = device_key(record.address)
        try:
            revision = await self._kv.update(key, record.model_dump_json().encode(), last=last)
        except KeyWrongLastSequenceError as error:
            await self._refresh(key)
            raise ConflictError(
                f"write device {record.address}: revision {last} is not the newest; try again"
            ) from error
        return self._learn(record, revision)

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
            if entry.operation is None and entry.value:
                self._learn(DeviceRecord.model_validate_json(entry.value), entry.revision or 0)
            # The watcher's own marker rests on a count that 2.9.10 gets wrong after overwrites.
            if (entry.revision or 0) >= newest:
                loaded.set()

    async def _refresh(self, key: str) -> None:
        assert self._kv is not None
        try:
            entry = await self._kv.get(key)
        except KeyNotFoundError:
            return
        if entry.value:
            self._learn(DeviceRecord.model_validate_json(entry.value), entry.revision or 0)

    def _learn(self, record: DeviceRecord, revision: int) -> Stored:
        present = self._stored.get(record.address)
        if present is not None and present.revision >= revision:
            return present
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
    """Bucket `tokens`; a record is gone a week after its token could last have been used."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv

    async def add(self, record: TokenRecord) -> None:
        """Store a new token."""
        await self._kv.create(record.token, record.model_dump_json().encode())

    async def get(self, token: str) -> StoredToken | None:
        """A token's record, None where there is none."""
        try:
            entry = await self._kv.get(token)
        except KeyNotFoundError:
            return None
        return StoredToken(TokenRecord.model_validate_json(entry.value or b""), entry.revision or 0)

    async def write(self, record: TokenRecord, last: int) -> None:
        """Store a token's use.

        Raises:
            ConflictError: if another letter was faster.
        """
        try:
            await self._kv.update(record.token, record.model_dump_json().encode(), last=last)
        except KeyWrongLastSequenceError as error:
            raise ConflictError(f"spend token {record.token}: another letter was faster; look again") from error
