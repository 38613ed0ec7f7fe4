"""What all parts of a courier work with."""

from __future__ import annotations

from dataclasses import dataclass

from services.courier.settings import CourierSettings
from services.kit.bus import Bus
from services.kit.devices import DeviceBook
from services.kit.keys import LetterKey


@dataclass(frozen=True, slots=True)
class Premises:
    """The same for a courier's whole life.

    Attributes:
        key: signs receipts and bundles.
        platform: id of the platform that devices belong to.
        book: the devices and their keys.
    """

    bus: Bus
    key: LetterKey
    platform: str
    book: DeviceBook
    settings: CourierSettings
