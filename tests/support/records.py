"""Records of devices in the bucket, as the registry writes them."""

from __future__ import annotations

from schemas.envelope import Signer
from services.kit.bus import Bus
from services.kit.devices import DeviceRecord, device_key
from services.kit.folder import StateFolder
from services.kit.keys import read_letter_key
from services.kit.records import next_serial, seal_record
from services.kit.streams import ensure_owned


def registry_signer(state: StateFolder) -> Signer:
    """The registry's letter key."""
    return read_letter_key(state.service_key("registry")).signer


async def put_records(state: StateFolder, registry: Bus, *records: DeviceRecord) -> None:
    """Write records over a connection with the registry's credentials, whatever was there before."""
    await ensure_owned(registry.js, "registry")
    bucket, signer = await registry.bucket("devices"), registry_signer(state)
    for record in records:
        newest = record.model_copy(update={"serial": next_serial(record.serial)})
        await bucket.put(device_key(record.address), seal_record(newest, signer))
