"""What guards IN against clones, and what operators may have done to it: wired in one place."""

from __future__ import annotations

from schemas.ids import Address
from services.courier.down.postman import Postman
from services.courier.integrity.clones import CloneWatch
from services.courier.integrity.recalls import LowerVerb
from services.courier.integrity.replays import ReplayVerb
from services.courier.integrity.warden import Warden
from services.courier.receipts.receipts import Receipts
from services.courier.settings import CourierSettings
from services.courier.up.errands import Errands
from services.kit.bus import Bus
from services.kit.devices import DeviceBook, DeviceRecord
from services.kit.service import Service


class Integrity:
    """Made at once; works from `start` on, when this courier is active.

    Attributes:
        errands: for the intake to run.
        watch: for the intake to look for clones with.
        warden: takes what it finds to the registry.
    """

    def __init__(
        self, bus: Bus, book: DeviceBook, receipts: Receipts, postman: Postman, settings: CourierSettings
    ) -> None:
        def released_at(address: Address) -> float:
            record = book.get(address)
            return record.released_at or 0.0 if record is not None else 0.0

        self.errands = Errands()
        self.watch = CloneWatch(settings.watched_lanes, released_at)
        self.warden = Warden(bus, book, self.watch)
        self._verbs = (ReplayVerb(bus, self.errands), LowerVerb(bus, self.errands, receipts))
        self._postman = postman
        book.on_change(self._changed)

    def start(self, service: Service) -> None:
        """Work, as the active courier."""
        service.spawn(self.warden.run(), "clones")
        service.spawn(self._serve(), "verbs")

    async def _serve(self) -> None:
        for verb in self._verbs:
            await verb.serve()

    def _changed(self, record: DeviceRecord) -> None:
        self._postman.rest(record.address, resting=record.standing == "quarantined")
