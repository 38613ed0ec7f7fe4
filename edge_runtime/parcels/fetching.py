"""Fetching artifacts piece by piece. Light: no numpy, no TUF, no zstd.

Resuming is a rescan: hash every piece of what lies there, fetch what differs, check the whole digest at the end. There
is no journal to be wrong. A piece is believed for its digest alone, whoever sent it.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.errors import FetchError
from edge_runtime.parcels.slices import Assembly
from edge_runtime.parcels.staging import Places, explained, holds, scan, write_at
from edge_runtime.parcels.windows import MAX_WINDOW_BYTES, Pace
from edge_runtime.ports import Sender, Shelf
from schemas.aggregator import Artifact
from schemas.depot import MAX_WANT, Slice, Want, read_piece, read_recipe, read_slice
from schemas.errors import MessageError

PATIENCE_S = 3_600.0
_SPARE_BYTES = 16 << 20
"""Never filled up: the outbox lives on the same disk."""
SLOWEST_BYTES_PER_S = 1_000
ROUND_TRIPS = 3
"""Added to the wait for a piece: a far link is no reason to ask twice."""
_RESCANS = 2


@dataclass(frozen=True, slots=True)
class PieceRefusal:
    """Bytes that are not what they claim to be; to be reported as event `piece.refused`."""

    reason: str
    message: str
    details: dict[str, str | int]


@dataclass(slots=True)
class _Exchange:
    """The wants of one window: what still has to come, and what to do with it.

    It stays open until the next one, since what was given up as lost may only be slow.
    """

    asked: tuple[str, ...]
    size: int
    missing: set[str]
    take: Callable[[str, bytes], None]
    parts: Assembly | None = None
    """Where slices of the one piece are asked for."""
    moved: bool = False
    """A slice has come."""
    progress: asyncio.Event = field(default_factory=asyncio.Event)
    error: FetchError | None = None

    def arrived(self) -> list[str]:
        """What has come by now."""
        return [digest for digest in self.asked if digest not in self.missing]


@dataclass(frozen=True, slots=True)
class Way:
    """The link, as far as fetching must know it."""

    granted_bytes: Callable[[], int] = lambda: MAX_WINDOW_BYTES
    """Pieces to be asked for at a time."""
    receiving: Callable[[], float | None] = lambda: None
    """Monotonic time of the last byte that came in; None while there is no link."""
    round_trip_s: Callable[[], float] = lambda: 0.0


class PieceFetcher:
    """Implements `edge_runtime.ports.Parcels` over `parcel/want` and `down/piece`.

    One window of wants is outstanding at a time, over all fetches together: at most 32 pieces, and about what the link
    carries in 3 s. It halves when nothing comes and grows again. While bytes come in, a piece is not given up: asked
    for twice, it would only make a slow link slower.

    Attributes:
        unsolicited: pieces that nobody waited for; they are ignored.
        refused: pieces whose bytes did not match.

    Args:
        sender: `send_parcel` says whether the want went out.
        way: what the link allows, and whether something is coming.
        shelf: pieces that came another way; looked at first.
        patience_s: without one new piece for so long, a fetch fails; being offline counts.
        monotonic: seconds that never jump.
        chance: uniform in [0, 1), for jitter.
    """

    def __init__(
        self,
        sender: Sender,
        shelf: Shelf | None = None,
        *,
        way: Way | None = None,
        patience_s: float = PATIENCE_S,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._sender = sender
        self._shelf = shelf
        self._way = way or Way()
        self._patience_s = patience_s
        self._monotonic = monotonic
        self._pace = Pace(chance)
        self._turn = asyncio.Lock()
        self._exchange: _Exchange | None = None
        self._connected = asyncio.Event()
        self.unsolicited = 0
        self.refused = 0

    def received(self, raw: bytes) -> PieceRefusal | None:
        """Take what `down/piece` brought. Called in the event loop's thread.

        Returns:
            A refusal if the bytes do not match the digest before them. An honest piece that nobody waits for is counted
            and ignored.
        """
        try:
            digest, data = read_piece(raw)
        except MessageError as error:
            self.refused += 1
            claimed = raw[:32].hex()
            return PieceRefusal(error.reason, str(error), {"piece": claimed, "bytes": len(raw)})
        exchange = self._exchange
        if exchange is None or digest not in exchange.missing:
            self.unsolicited += 1
            return None
        self._put(exchange, digest, data)
        return None

    def received_slice(self, raw: bytes) -> PieceRefusal | None:
        """Take what `down/slice` brought. Returns as `received`; a slice that is not due is counted and ignored."""
        try:
            part = read_slice(raw)
        except MessageError as error:
            self.refused += 1
            return PieceRefusal(error.reason, str(error), {"piece": raw[:32].hex(), "bytes": len(raw)})
        exchange = self._exchange
        if exchange is None or exchange.parts is None or not exchange.missing or not exchange.parts.add(part):
            self.unsolicited += 1
            return None
        exchange.moved = True
        exchange.progress.set()
        data = exchange.parts.whole()
        if data is None:
            return None
        if not exchange.parts.true():
            self.refused += 1
            message = f"the slices of piece {part.digest} make {len(data)} bytes of another digest"
            return PieceRefusal("wrong_digest", message, {"piece": part.digest, "bytes": len(data)})
        self._put(exchange, part.digest, data)
        return None

    def connected(self) -> None:
        """Say that the link is up again, so that waiting fetches go on at once."""
        self._connected.set()

    async def fetch(self, artifact: Artifact, destination: Path) -> None:
        """Fetch an artifact; whole, verified and fsynced when this returns.

        Args:
            artifact: as a signed letter or a signed release names it.
            destination: file to make; what a former attempt left in it is used.

        Raises:
            FetchError: `timeout`, `wrong_digest` or `disk_full`. What has arrived stays for the next attempt, unless
                the whole digest is wrong.
        """
        if await asyncio.to_thread(holds, destination, artifact):
            return
        places = await self._recipe(artifact)
        with explained(artifact, destination):
            destination.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(destination, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            await self._fill(artifact, places, descriptor, destination)
        finally:
            os.close(descriptor)
        if self._shelf is not None:
            await asyncio.to_thread(self._shelf.clear, [artifact.recipe, *places])

    async def _fill(self, artifact: Artifact, places: Places, descriptor: int, destination: Path) -> None:
        with explained(artifact, destination):
            os.ftruncate(descriptor, artifact.length)
        for _ in range(_RESCANS):
            missing = await asyncio.to_thread(scan, descriptor, places)
            self._check_room(artifact, destination, sum(places[d][1] * len(places[d][0]) for d in missing))

            def take(digest: str, data: bytes) -> None:
                with explained(artifact, destination):
                    for offset in places[digest][0]:
                        write_at(descriptor, data, offset)

            await self._collect(artifact.recipe, {digest: places[digest][1] for digest in missing}, take)
            with explained(artifact, destination):
                await asyncio.to_thread(os.fsync, descriptor)
            if await asyncio.to_thread(holds, destination, artifact):
                return
        await asyncio.to_thread(destination.unlink, missing_ok=True)
        raise FetchError(
            f"fetch artifact {artifact.sha256}: all its pieces arrived, but together they have another digest; "
            "whoever signed it named a recipe that is not its own",
            reason="wrong_digest",
        )

    async def _recipe(self, artifact: Artifact) -> Places:
        found: list[bytes] = []
        await self._collect(None, {artifact.recipe: 36 * artifact.pieces}, lambda _, data: found.append(data))
        try:
            entries = read_recipe(found[0])
        except MessageError as error:
            raise FetchError(f"fetch artifact {artifact.sha256}: {error}", reason="wrong_digest") from error
        places: Places = {}
        offset = 0
        for entry in entries:
            places.setdefault(entry.sha256, ([], entry.length))[0].append(offset)
            offset += entry.length
        if offset != artifact.length:
            raise FetchError(
                f"fetch artifact {artifact.sha256}: its recipe makes {offset} bytes, signed are {artifact.length}",
                reason="wrong_digest",
            )
        return places

    async def _collect(self, recipe: str | None, wanted: dict[str, int], take: Callable[[str, bytes], None]) -> None:
        """Get every piece of `wanted` (digest to length), window by window, for as long as there is progress."""
        missing = dict(wanted)
        deadline = self._monotonic() + self._patience_s
        exchange: _Exchange | None = None
        parts: Assembly | None = None
        try:
            while missing:
                arrived = await self._take_from_shelf(missing, take)
                if not arrived and exchange is not None:
                    arrived, exchange = [digest for digest in exchange.arrived() if digest in missing], None
                if not arrived:
                    async with self._turn:
                        exchange, parts = self._next(missing, parts, take)
                        await self._ask(recipe, exchange)
                        arrived = exchange.arrived()
                for digest in arrived:
                    del missing[digest]
                if arrived:
                    deadline = self._monotonic() + self._patience_s
                elif self._monotonic() > deadline:
                    first = next(iter(missing))
                    raise FetchError(
                        f"fetch {len(missing)} pieces ({first[:12]}...): none came for {self._patience_s:.0f} s; "
                        "the device may be offline, or the depot does not have them",
                        reason="timeout",
                    )
                elif exchange is None or not exchange.moved:
                    await self._rest(deadline)
        finally:
            # What comes later must not be written to a file that is closed by then.
            if self._exchange is not None and self._exchange.take is take:
                self._exchange = None

    async def _take_from_shelf(self, missing: Iterable[str], take: Callable[[str, bytes], None]) -> list[str]:
        """Up to a window of the pieces that lie on this device already."""
        if self._shelf is None:
            return []
        found = await asyncio.to_thread(self._shelf.find, list(missing), MAX_WANT)
        for digest, data in found.items():
            take(digest, data)
        return list(found)

    def _next(
        self, missing: Mapping[str, int], parts: Assembly | None, take: Callable[[str, bytes], None]
    ) -> tuple[_Exchange, Assembly | None]:
        """What to ask for: some pieces, or a slice of one that is large for this link, begun with `parts` perhaps."""
        granted = self._way.granted_bytes()
        asked = tuple(self._pace.window(missing, MAX_WANT, granted))
        first, length = asked[0], missing[asked[0]]
        if parts is not None and parts.digest != first:
            parts = None
        size = self._pace.slice(length, parts.offset if parts else 0, granted)
        if size is None or len(asked) > 1:
            return _Exchange(asked, sum(missing[digest] for digest in asked), set(asked), take), None
        parts = parts or Assembly(first, length)
        return _Exchange((first,), size, {first}, take, parts), parts

    async def _ask(self, recipe: str | None, exchange: _Exchange) -> None:
        """Send one want and wait while its pieces come."""
        self._exchange, asked, parts = exchange, exchange.asked, exchange.parts
        part = Slice(offset=parts.offset, length=exchange.size) if parts is not None else None
        if recipe is None:
            want = Want(recipe=asked[0], slice=part)
        else:
            want = Want(pieces=list(asked), recipe=recipe, slice=part)
        started = self._monotonic()
        try:
            self._connected.clear()
            if not self._sender.send_parcel("want", want.write()):
                return
            while exchange.missing and not exchange.moved:
                exchange.progress.clear()
                await self._progress(exchange)
                if exchange.error is not None:
                    raise exchange.error
        except TimeoutError:
            self._pace.stalled(some_came=len(exchange.missing) < len(asked))
        else:
            self._pace.completed(self._monotonic() - started, self._way.round_trip_s())

    def _put(self, exchange: _Exchange, digest: str, data: bytes) -> None:
        try:
            exchange.take(digest, data)
        except FetchError as error:
            exchange.error = error
        exchange.missing.discard(digest)
        exchange.progress.set()

    async def _progress(self, exchange: _Exchange) -> None:
        """Wait for a piece; TimeoutError once neither one nor a byte of one has come for a while.

        Bytes may be of something else, so that they put it off only for as long as a very slow link needs.
        """
        since, stall_s = self._monotonic(), self._pace.stall_s + ROUND_TRIPS * self._way.round_trip_s()
        end = since + stall_s + exchange.size / SLOWEST_BYTES_PER_S
        while True:
            left = stall_s - (self._monotonic() - since)
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await exchange.progress.wait()
                return
            except TimeoutError:
                heard, now = self._way.receiving(), self._monotonic()
                if heard is None or now - heard >= stall_s or now > end:
                    raise
                since = heard

    async def _rest(self, deadline: float) -> None:
        pause = min(self._pace.pause_s(), max(0.0, deadline - self._monotonic()) + 0.01)
        try:
            async with asyncio.timeout(pause):
                await self._connected.wait()
        except TimeoutError:
            return

    def _check_room(self, artifact: Artifact, destination: Path, needed: int) -> None:
        with explained(artifact, destination):
            free = shutil.disk_usage(destination.parent).free
        if needed and needed + _SPARE_BYTES > free:
            raise FetchError(
                f"fetch artifact {artifact.sha256}: {needed} bytes are missing and {free} are free on the disk of "
                f"{destination.parent}; make room",
                reason="disk_full",
            )
