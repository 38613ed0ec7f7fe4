"""What devices say outside letters: hello and got."""

from __future__ import annotations

from typing import Any

from nats.aio.msg import Msg

from schemas.errors import ContractError, MessageError
from schemas.ids import Address
from schemas.letters import read_state
from schemas.topics import Channel, parse_subject, up_pattern
from services.courier.bundles.wiring import Bundles
from services.courier.down.postman import Postman
from services.courier.receipts.receipts import Receipts
from services.courier.receipts.sessions import Sessions
from services.courier.up.intake import Intake
from services.kit.bus import Bus
from services.kit.rejects import Turnstile


class StateHandlers:
    """Parses and hands on. A standby learns sessions, too, so that a takeover can answer at once."""

    def __init__(
        self,
        intake: Intake,
        postman: Postman,
        receipts: Receipts,
        bundles: Bundles,
        sessions: Sessions,
        turnstile: Turnstile,
    ) -> None:
        self._intake = intake
        self._postman = postman
        self._receipts = receipts
        self._bundles = bundles
        self._sessions = sessions
        self._turnstile = turnstile
        self.active = False

    async def subscribe(self, bus: Bus) -> None:
        """Listen; state needs no stream, since devices repeat it."""
        await bus.nc.subscribe(up_pattern(Channel.STATE, "hello"), cb=self.hello)
        await bus.nc.subscribe(up_pattern(Channel.STATE, "got"), cb=self.got)

    async def hello(self, message: Msg) -> None:
        """Answer with the marks, then with the mailbox; the same however often it is said."""
        read = await self._read(message, "hello")
        if read is None:
            return
        address, hello = read
        has_returned = self._sessions.learn(address, hello.session)
        if self.active:
            self._intake.touch(address)
            await self._receipts.ask(address, hello.epoch)
            self._postman.hello(address, hello.held)
            if has_returned:
                self._bundles.returned(address)

    async def got(self, message: Msg) -> None:
        """The topic says who holds the letters; ids of others are ignored."""
        read = await self._read(message, "got")
        if read is not None and self.active:
            address, got = read
            self._postman.got(address, got.ids)

    async def _read(self, message: Msg, kind: str) -> tuple[Address, Any] | None:
        try:
            address = parse_subject(message.subject).address
            event = read_state(message.data, kind)
            if event.source != address.source:
                raise MessageError(f"{kind} of {event.source} on the topic of {address.source}", reason="wrong_source")
        except ContractError as error:
            if self.active:
                await self._turnstile.refuse(message.subject, message.data, error)
            return None
        return address, event.data
