"""Sends pieces to the devices that asked for them."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import structlog
from nats.errors import Error as NatsError
from prometheus_client import Counter, Gauge

from schemas.depot import Slice, write_piece, write_slice
from schemas.ids import Address
from schemas.topics import Channel, Topic
from services.depot.queues import Item, Queues
from services.depot.register import Register
from services.kit.artifacts import ArtifactStore, StoreError
from services.kit.errors import NotFoundError, PlatformError

log = structlog.get_logger()

SENDERS = 4
CACHE_BYTES = 64 << 20

PIECES = Counter("causeway_depot_pieces_total", "Pieces sent to devices, and slices of them.")
BYTES = Counter("causeway_depot_sent_bytes_total", "Bytes of pieces sent to devices.")
HITS = Counter("causeway_depot_cache_hits_total", "Pieces that were still in memory.")
UNSENT = Counter("causeway_depot_unsent_total", "Pieces asked for and not sent, by reason.", ["reason"])
WAITING = Gauge("causeway_depot_waiting_pieces", "Pieces asked for and not sent yet.")

Publish = Callable[[str, bytes], Awaitable[None]]


class PieceServer:
    """Reads pieces from the store and publishes them, one device after the other.

    Args:
        publish: sends bytes to a subject; the connection's own `publish`.
    """

    def __init__(self, store: ArtifactStore, register: Register, publish: Publish) -> None:
        self._store = store
        self._register = register
        self._publish = publish
        self._queues = Queues()
        self._wake = asyncio.Semaphore(0)
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached_bytes = 0

    def ask(self, address: Address, items: list[Item]) -> int:
        """Queue what a device wants.

        Returns:
            How many of the items were refused, since the device has too many waiting.
        """
        before = len(self._queues)
        refused = self._queues.add(address, items)
        for _ in range(len(self._queues) - before):
            self._wake.release()
        UNSENT.labels("too_many").inc(refused)
        WAITING.set(len(self._queues))
        return refused

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(SENDERS):
                group.create_task(self._send())

    async def _send(self) -> None:
        while True:
            await self._wake.acquire()
            turn = self._queues.next()
            if turn is None:
                continue
            WAITING.set(len(self._queues))
            address, item = turn
            try:
                data = await self._read(item)
                if item.part is None:
                    kind, raw = "piece", write_piece(data)
                else:
                    kind, raw = "slice", write_slice(data, Slice(offset=item.part[0], length=item.part[1]))
                await self._publish(Topic(address, Channel.DOWN, kind).subject, raw)
            except (PlatformError, NatsError) as error:
                # The device asks again; a piece that nobody has is told apart by its reason.
                reason = error.code if isinstance(error, PlatformError) else "bus"
                UNSENT.labels(reason).inc()
                log.warning("piece.unsent", device=str(address), piece=item.piece, recipe=item.recipe, error=str(error))
                continue
            PIECES.inc()
            BYTES.inc(len(raw))

    async def _read(self, item: Item) -> bytes:
        index = await self._register.index(item.recipe)
        if item.piece is None:
            return index.raw
        if item.piece in self._cache:
            self._cache.move_to_end(item.piece)
            HITS.inc()
            return self._cache[item.piece]
        place = index.places.get(item.piece)
        if place is None:
            raise NotFoundError(f"find piece {item.piece}: recipe {item.recipe} has no such piece")
        data = await self._store.open_range(index.sha256, *place)
        if hashlib.sha256(data).hexdigest() != item.piece:
            raise StoreError("read", index.sha256, "damaged", f"{place[1]} bytes at {place[0]} changed; store it again")
        self._remember(item.piece, data)
        return data

    def _remember(self, piece: str, data: bytes) -> None:
        if piece not in self._cache:
            self._cache[piece] = data
            self._cached_bytes += len(data)
        while self._cached_bytes > CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= len(dropped)
