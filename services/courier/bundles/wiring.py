"""The courier's part in carrying: takes bundles apart, answers them, and serves those who bring them by hand."""

from __future__ import annotations

import asyncio

import structlog

from schemas.ids import Address
from services.courier.bundles.answers import Answers
from services.courier.bundles.origins import Origins
from services.courier.bundles.reader import BundleReader
from services.courier.bundles.unpacker import Unpacker
from services.courier.bundles.verbs import BundleVerbs
from services.courier.down.postman import Postman
from services.courier.premises import Premises
from services.courier.receipts.receipts import Receipts
from services.courier.up.carried import CarriedLetters
from services.kit.rejects import Turnstile
from services.kit.service import Service

log = structlog.get_logger()


class Bundles:
    """Works while this courier is active.

    Without a seal key there is nothing to do: no device could have sealed a bundle to this courier.

    Attributes:
        serving: once operators are answered, or there is nothing to do.
    """

    def __init__(
        self,
        premises: Premises,
        *,
        carried: CarriedLetters,
        postman: Postman,
        receipts: Receipts,
        turnstile: Turnstile,
    ) -> None:
        self._bus, settings = premises.bus, premises.settings
        self._reader: BundleReader | None = None
        self._answers: Answers | None = None
        self.serving = asyncio.Event()
        seal_key = premises.key.seal_key
        if seal_key is None:
            log.warning("bundles.off", why="the courier's key file has no seal seed; `causeway init` writes one")
            self.serving.set()
            return
        origins = Origins(settings.max_origins)
        self._answers = Answers(premises, origins=origins, postman=postman, receipts=receipts)
        unpacker = Unpacker(
            premises.book,
            premises.platform,
            seal_key,
            carried=carried,
            postman=postman,
            origins=origins,
            turnstile=turnstile,
            answer=self._answers.ask,
            settings=settings,
        )
        self._reader = BundleReader(premises.bus, unpacker, turnstile, settings)
        self._verbs = BundleVerbs(self._reader, self._answers, origins, postman)

    def start(self, service: Service, *ready: asyncio.Event) -> None:
        """Begin once letters are taken and mailboxes known; only an active courier calls this."""
        if self._reader is not None:
            service.bus.on_disconnect(self._reader.doubt)
            assert self._answers is not None
            service.spawn(self._answers.run(), "answers")
            service.spawn(self._run(self._reader, ready), "bundles")
            service.every(self._reader.extend_interval_s, self._reader.extend, "bundles-held")

    def returned(self, carrier: Address) -> None:
        """A device connected anew: the answers to what it brought may have found nobody."""
        if self._answers is not None:
            self._answers.again(carrier)

    def interrupt(self, why: str) -> None:
        """The consumer may be gone."""
        if self._reader is not None:
            self._reader.interrupt(why)

    async def _run(self, reader: BundleReader, ready: tuple[asyncio.Event, ...]) -> None:
        for sign in ready:
            await sign.wait()
        await self._verbs.serve(self._bus)
        self.serving.set()
        await reader.run()
