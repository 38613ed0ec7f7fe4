"""Bundles down: to each device that speaks through others its receipt, its letters and the trust metadata it lacks.

Nothing of it is on disk here: what is lost on its way is sent again when the carrier connects anew, or asked for by the
device's next bundle.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from nats.errors import Error as NatsError
from ulid import ULID

from schemas.bundles import MAX_COPIES, Addressed, CarriedLetter, Contents, Parcel, write_bundle
from schemas.courier import Hello
from schemas.depot import TrustState
from schemas.errors import ContractError
from schemas.events import service_source
from schemas.ids import Address
from schemas.topics import Channel, Topic
from services.courier import metrics
from services.courier.bundles.kept import KeptAnswers
from services.courier.bundles.origins import Origins
from services.courier.down.mailboxes import Waiting
from services.courier.down.postman import Postman
from services.courier.pacing import Due, Pacer
from services.courier.premises import Premises
from services.courier.receipts.receipts import Receipts
from services.kit import rpc
from services.kit.api.depot import PackAnswer, PackRequest
from services.kit.devices import DeviceRecord
from services.kit.errors import NotFoundError, PlatformError, RefusedError, UnreachableError
from services.kit.service import utc_now

log = structlog.get_logger()

FETCH = 16
"""Letters that are read from OUT at a time, until enough are there."""
MAX_LETTERS = 256
PACK_TIMEOUT_S = 5.0
AGAIN_BYTES = 1 << 20
"""Of answers that a carrier is sent once more at a time: more than any one has, and minutes on a poor link."""
_ANSWER, _AGAIN = "answer", "again"
"""What is owed: to a device an answer, to a carrier once more the answers to what it brought."""
_EVERYTHING = TrustState(root=0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One bundle down, and what is in it.

    Attributes:
        more: OUT's sequence of the last letter in it, if others wait behind it.
    """

    bundle: str
    parcels: tuple[Parcel, ...]
    letters: tuple[tuple[Waiting, bytes], ...]
    receipts: int
    trust: bool
    more: int | None


class Answers:
    """Makes bundles for devices; sends those that are owed, at most one per device and interval.

    What is sent again are the same bundles: a carrier that has them says so, and they take no more of its room.
    """

    def __init__(
        self,
        premises: Premises,
        *,
        origins: Origins,
        postman: Postman,
        receipts: Receipts,
    ) -> None:
        self._premises = premises
        self._origins = origins
        self._postman = postman
        self._receipts = receipts
        self._pacer = Pacer(premises.settings.answer_interval_s)
        self._kick = asyncio.Event()
        self._now: list[Due] = []
        self._kept = KeptAnswers(premises.settings.answers_kept_bytes)

    def ask(self, address: Address) -> None:
        """A device is owed an answer."""
        self._owe(address, _ANSWER)

    def again(self, carrier: Address) -> None:
        """A carrier is sent the answers to what it brought lately once more, and nobody else is."""
        if self._origins.brought_by(carrier, time.monotonic()):
            self._owe(carrier, _AGAIN)

    async def run(self) -> None:
        """Send what is owed, when its time has come."""
        while True:
            due, self._now = self._now, []
            due += self._pacer.due(time.monotonic())
            for each in due:
                await (self._send if each.what == _ANSWER else self._send_again)(each.address)
            self._kick.clear()
            wake = self._pacer.next_wake()
            if self._now:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wake is None else max(0.0, wake - time.monotonic())):
                    await self._kick.wait()

    async def receipt(self, address: Address) -> Answer | None:
        """A bundle with nothing but the receipt; None if it cannot be made now, as before the marks are known."""
        hello = self._origins.get(address).hello
        raw = self._receipt(address, hello)
        if raw is None:
            return None
        try:
            return self._seal(self._record(address), Contents(letters=[raw]), (), None)
        except PlatformError as error:
            # What was brought is in IN; whoever brought it has more on his stick.
            log.warning("bundle.without_receipt", device=str(address), error=repr(error))
            return None

    async def write(self, address: Address, after: int = 0, *, whole: bool = False) -> Answer:
        """A bundle with everything that waits for a device, as far as it fits.

        Args:
            address: the device.
            after: only letters behind this sequence of OUT.
            whole: fail rather than leave the receipt or the trust metadata out.

        Raises:
            NotFoundError, RefusedError: if there is no such device, it may not speak, or nothing can be sealed to it.
            PlatformError: if OUT or, for `whole`, the depot does not answer; UnreachableError to ask again in a moment.
        """
        record = self._record(address)
        hello = self._origins.get(address).hello
        letters, more = await self._letters(address, after)
        carried = [CarriedLetter(kind=letter.kind, envelope=raw.decode()) for letter, raw in letters]
        receipt, trust = None, None
        if after == 0:
            receipt = self._receipt(address, hello)
            if whole and hello is not None and receipt is None:
                raise UnreachableError(f"write a bundle to {address}: the courier is reading its marks; ask again")
            trust = await self._trust(hello, whole=whole)
        contents = Contents(letters=[*([receipt] if receipt else []), *carried], trust=trust)
        return self._seal(record, contents, tuple(letters), more)

    def _owe(self, address: Address, what: str) -> None:
        due = self._pacer.ask(address, what, time.monotonic())
        if due is not None:
            self._now.append(due)
        self._kick.set()

    async def _send(self, address: Address) -> None:
        origin, record = self._origins.get(address), self._premises.book.get(address)
        carriers = [carrier for carrier in origin.carriers if carrier != address]
        # To whoever brought its bundles, and to itself in case it has a link of its own by now.
        ways = [(carrier, "carrier", _share(carriers)) for carrier in carriers]
        if record is not None and record.online:
            ways.append((address, "direct", 1))
        if not ways:
            return
        doubts = self._origins.doubts
        try:
            answer = await self.write(address)
        except (PlatformError, NatsError, TimeoutError) as error:
            # The device's next bundle asks again.
            log.warning("bundle.not_answered", device=str(address), error=repr(error))
            return
        if origin.hello is not None and not answer.receipts:
            # The marks are being read; they will be known in a moment.
            self.ask(address)
            return
        self._kept.put(address, answer.parcels, time.monotonic(), doubts)
        for receiver, way, copies in ways:
            await self._publish(receiver, answer.parcels, copies)
            metrics.ANSWERS.labels(way).inc()

    async def _send_again(self, carrier: Address) -> None:
        now, room = time.monotonic(), AGAIN_BYTES
        for address in self._origins.brought_by(carrier, now):
            kept, record = self._kept.of(address, now), self._premises.book.get(address)
            if kept is None or record is None or record.standing != "enrolled":
                continue
            if kept.doubts != self._origins.doubts:
                # It acknowledges what a server that came back may have lost.
                self.ask(address)
                continue
            room -= kept.size
            if room < 0:
                return
            await self._publish(carrier, kept.parcels, _share(self._origins.get(address).carriers), now - kept.at)
            metrics.ANSWERS.labels("again").inc()

    async def _publish(self, receiver: Address, parcels: Sequence[Parcel], copies: int, age_s: float = 0.0) -> None:
        subject = Topic(receiver, Channel.DOWN, "bundle").subject
        try:
            for parcel in parcels:
                await self._premises.bus.nc.publish(
                    subject, parcel.on_its_way(hops=0, copies=copies, age_s=age_s).write()
                )
        except NatsError as error:
            log.warning("bundle.not_sent", carrier=str(receiver), error=repr(error))

    def _record(self, address: Address) -> DeviceRecord:
        record = self._premises.book.get(address)
        if record is None:
            raise NotFoundError(f"write a bundle to {address}: there is no such device; see `causeway device list`")
        if record.standing != "enrolled":
            raise RefusedError(f"write a bundle to {address}: it is {record.standing}")
        return record

    def _receipt(self, address: Address, hello: Hello | None) -> CarriedLetter | None:
        if hello is None:
            return None
        raw = self._receipts.write(address, hello.session, hello.epoch, self._premises.settings.answer_lifetime_s)
        return None if raw is None else CarriedLetter(kind="receipt", envelope=raw.decode())

    async def _letters(self, address: Address, after: int) -> tuple[list[tuple[Waiting, bytes]], int | None]:
        waiting = [letter for letter in self._postman.waiting(address) if letter.sequence > after]
        chosen: list[tuple[Waiting, bytes]] = []
        room = self._premises.settings.answer_bytes
        for start in range(0, len(waiting), FETCH):
            for letter, raw in await self._postman.fetch(waiting[start : start + FETCH]):
                room -= len(raw)
                if room < 0 or len(chosen) == MAX_LETTERS:
                    return chosen, chosen[-1][0].sequence
                chosen.append((letter, raw))
        return chosen, None

    async def _trust(self, hello: Hello | None, *, whole: bool) -> str | None:
        held = (hello.trust if hello else None) or _EVERYTHING
        try:
            answer = await rpc.call(
                self._premises.bus, "depot", "pack", PackRequest(held=held), timeout_s=PACK_TIMEOUT_S
            )
        except PlatformError as error:
            if whole:
                raise
            log.warning("bundle.without_trust", error=str(error))
            return None
        return PackAnswer.model_validate(answer).pack

    def _seal(
        self, record: DeviceRecord, contents: Contents, letters: tuple[tuple[Waiting, bytes], ...], more: int | None
    ) -> Answer:
        to = Addressed(
            bundle_id=str(ULID()),
            platform=self._premises.platform,
            origin=service_source("courier"),
            destination=record.address.source,
            created=utc_now(),
            lifetime_s=self._premises.settings.answer_lifetime_s,
            priority="control",
            acknowledges=self._origins.get(record.address).stored,
        )
        seal_key, signer = base64.b64decode(record.seal_key), self._premises.key.signer
        try:
            parcels = write_bundle(contents, to, seal_key=seal_key, signer=signer)
        except ContractError as error:
            raise RefusedError(f"write a bundle to {record.address}: {error}") from error
        receipts = len(contents.letters) - len(letters)
        return Answer(to.bundle_id, tuple(parcels), letters, receipts, contents.trust is not None, more)


def _share(carriers: Sequence[Address]) -> int:
    """How many copies each of them may make."""
    return max(1, MAX_COPIES // max(1, len(carriers)))
