"""The devices that may speak: keys and standing, followed from the registry's bucket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal

import structlog
from nats.errors import Error as NatsError
from nats.js.kv import KeyValue
from prometheus_client import Counter
from pydantic import BaseModel

from schemas.envelope import Verifier
from schemas.errors import ContractError, MessageError
from schemas.ids import Address
from schemas.registry import Capabilities
from services.kit.bus import Bus
from services.kit.errors import UnreachableError
from services.kit.verifier import SodiumVerifier

log = structlog.get_logger()

LOAD_TIMEOUT_S = 30.0
Standing = Literal["enrolled", "revoked", "quarantined"]
Owed = Literal["device-quarantined", "device-released", "device-revoked"]

REFUSED = Counter(
    "causeway_device_records_refused",
    "Values of bucket devices that the registry did not write, by reason.",
    ["reason"],
)


class Revocation(BaseModel):
    """JWTs of `bus_key` that were issued up to `at` are void; of no more interest after `expires`."""

    bus_key: str
    at: int
    expires: int


class Quarantine(BaseModel):
    """Why a device's letters are not taken for now."""

    at: float
    """Seconds since the epoch."""
    reason: Literal["two_letters", "old_epoch"]
    message: str
    letters: list[str] = []
    """Ids of the letters that prove it."""
    epochs: list[str] = []
    """The epochs that spoke, the contradicted one first."""


class DeviceRecord(BaseModel):
    """What the registry knows for good of one device: bucket `devices`, key `{fleet}.{device}`, in its envelope."""

    serial: int = 0
    """Rises with each writing; a reader that saw a higher one does not go back."""
    fleet: str
    device: str
    public_key: str
    seal_key: str
    standing: Standing = "enrolled"
    trust_level: Literal["bridged", "enrolled", "approved", "attested"] = "enrolled"
    capabilities: Capabilities
    labels: dict[str, str] = {}
    enrol_id: str
    """Letter that the present credentials answer."""
    bus_key: str
    """Public nkey of the device's bus user."""
    jwt_issued: int
    jwt_expires: int
    enrolled_at: str
    enrol_stored_at: float = 0.0
    """When IN took that letter; an enrol letter from before is a repetition."""
    revoked_at: float | None = None
    """Only a token made later lets the name in again."""
    quarantine: Quarantine | None = None
    """Present while `standing` is `quarantined`."""
    released_at: float | None = None
    """When an operator last ended a quarantine; letters from before prove nothing any more."""
    owed: Owed | None = None
    """Event of the last change of `standing`, until it is announced."""
    revocations: list[Revocation] = []
    online: bool = False
    """Presence as of the last change; the registry's snapshot has the live one."""

    @property
    def address(self) -> Address:
        """Name of the device."""
        return Address(self.fleet, self.device)


OpenRecord = Callable[[bytes, Address], DeviceRecord]
"""Reads a value of the bucket as the record of a device, or raises `ContractError`."""


def device_key(address: Address) -> str:
    """Key in bucket `devices`."""
    return f"{address.fleet}.{address.device}"


def address_of(key: str) -> Address:
    """The device of a key. Raises `TopicError`."""
    fleet, _, device = key.partition(".")
    return Address(fleet, device)


def check_serial(record: DeviceRecord, known: DeviceRecord | None) -> None:
    """Refuse a record from before the known one.

    Raises:
        MessageError: `replayed`.
    """
    if known is not None and record.serial < known.serial:
        raise MessageError(
            f"record {record.serial} of {record.address} is older than {known.serial}, which is known",
            reason="replayed",
        )


def refuse_value(key: str, error: ContractError) -> None:
    """Count and log a value that was not believed; what was known before still holds."""
    REFUSED.labels(error.reason).inc()
    log.error("device.record_refused", device=key[:128], reason=error.reason, error=str(error)[:400])


class DeviceBook:
    """A live copy of bucket `devices`: what `open_record` believes, and never an older record after a newer one."""

    def __init__(self, open_record: OpenRecord) -> None:
        self._open_record = open_record
        self._records: dict[Address, DeviceRecord] = {}
        self._verifiers: dict[Address, Verifier] = {}
        self._listeners: list[Callable[[DeviceRecord], None]] = []
        self._following: asyncio.Task[None] | None = None
        self._watcher: KeyValue.KeyWatcher | None = None
        self._arrivals: dict[Address, asyncio.Event] = {}
        self.ready = asyncio.Event()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, address: Address) -> DeviceRecord | None:
        """The record of a device, whatever its standing."""
        return self._records.get(address)

    def all(self) -> list[DeviceRecord]:
        """Every record."""
        return list(self._records.values())

    def verifier(self, address: Address) -> Verifier | None:
        """Key of a device that may speak; None if it is unknown, revoked or in quarantine."""
        return self._verifiers.get(address)

    def key_of(self, address: Address) -> Verifier | None:
        """Key of a device that may speak or is in quarantine: what IN holds of it was taken before."""
        record = self._records.get(address)
        if record is not None and record.standing == "quarantined":
            return SodiumVerifier.from_base64(record.public_key)
        return self.verifier(address)

    async def wait_verifier(self, address: Address, timeout_s: float) -> Verifier | None:
        """Like `key_of`, but give a record that is still on its way some time to arrive."""
        if address not in self._records:
            waiter = self._arrivals.setdefault(address, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await waiter.wait()
            self._arrivals.pop(address, None)
        return self.key_of(address)

    def on_change(self, listener: Callable[[DeviceRecord], None]) -> None:
        """Have `listener` called with each new or changed record."""
        self._listeners.append(listener)

    async def follow(self, bus: Bus) -> None:
        """Load the bucket and keep following it until closed; returns once it is loaded.

        Raises:
            UnreachableError: if it is not there, or does not come whole.
        """
        await self._start(bus)
        bus.on_reconnect(lambda: self._start(bus))

    def close(self) -> None:
        """Stop following."""
        if self._following is not None:
            self._following.cancel()

    async def _start(self, bus: Bus) -> None:
        self.close()
        await self._leave()
        bucket = await bus.bucket("devices")
        state = (await bus.js.stream_info("KV_devices")).state
        loaded = asyncio.Event()
        self._watcher = await bucket.watch(">")
        pump = self._pump(self._watcher, loaded, state.last_seq if state.messages else 0)
        self._following = asyncio.create_task(pump)
        self._following.add_done_callback(lambda task: report_end(bus, task))
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await loaded.wait()
        except TimeoutError as error:
            raise UnreachableError(f"load bucket devices: not whole after {LOAD_TIMEOUT_S:g} s") from error
        self.ready.set()

    async def _leave(self) -> None:
        # A watch that nobody reads any more would keep its messages in memory.
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            try:
                await watcher.stop()  # type: ignore[no-untyped-call]
            except NatsError as error:
                log.debug("devices.watcher_left", error=repr(error))

    async def _pump(self, watcher: KeyValue.KeyWatcher, loaded: asyncio.Event, newest: int) -> None:
        async for entry in watcher:
            if entry is None:  # the marker that says "all loaded"
                loaded.set()
                continue
            if entry.operation is None and entry.value:
                self._read(entry.key, entry.value)
            # The marker rests on a count that 2.9.10 gets wrong after overwrites.
            if (entry.revision or 0) >= newest:
                loaded.set()

    def _read(self, key: str, value: bytes) -> None:
        try:
            address = address_of(key)
            record = self._open_record(value, address)
            check_serial(record, self._records.get(address))
            self.learn(record)
        except ContractError as error:
            refuse_value(key, error)

    def learn(self, record: DeviceRecord) -> None:
        """Take over a record that is known to be the registry's."""
        address = record.address
        verifier = SodiumVerifier.from_base64(record.public_key)
        self._records[address] = record
        if record.standing == "enrolled":
            self._verifiers[address] = verifier
        else:
            self._verifiers.pop(address, None)
        if address in self._arrivals:
            self._arrivals[address].set()
        for listener in self._listeners:
            listener(record)


def report_end(bus: Bus, task: asyncio.Task[None]) -> None:
    """End the service with its watch of devices: it would not hear of a revocation."""
    if task.cancelled():
        return
    error = task.exception() or UnreachableError("follow bucket devices: the watch ended")
    bus.fail(error if isinstance(error, Exception) else UnreachableError(repr(error)))
