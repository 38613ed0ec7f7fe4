"""Large pieces on slow links come in slices; whatever comes late, twice or wrong, a file is made of what is true."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.parcels.fetching import PieceFetcher, Way
from edge_runtime.parcels.slices import Assembly
from edge_runtime.parcels.windows import MIN_WINDOW_BYTES, START_WINDOW_BYTES, Pace
from schemas.aggregator import Artifact
from schemas.depot import PieceSlice, Slice, Want, read_slice, write_piece, write_recipe, write_slice
from schemas.errors import MessageError
from schemas.events import MAX_PIECE_BYTES

PIECES = [random.Random(n).randbytes(40_000) for n in range(3)]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@given(st.binary(max_size=2_000), st.integers(0, 2_000), st.integers(1, 2_000))
def test_a_slice_survives_its_way(piece, offset, length) -> None:
    if offset > len(piece):
        with pytest.raises(MessageError):
            read_slice(write_slice(piece, Slice(offset=offset, length=length)))
        return
    found = read_slice(write_slice(piece, Slice(offset=offset, length=length)))
    assert found == PieceSlice(digest(piece), offset, len(piece), piece[offset : offset + length])


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_slice_within_bounds_or_refused(raw) -> None:
    try:
        found = read_slice(raw)
    except MessageError:
        return
    assert found.offset + len(found.data) <= found.total <= MAX_PIECE_BYTES


@given(st.binary(min_size=1, max_size=500), st.integers(1, 200), st.lists(st.integers(0, 500), max_size=20))
def test_slices_make_the_piece_whatever_comes_between(piece, size, stray) -> None:
    parts = Assembly(digest(piece), len(piece))
    strays = iter(stray)
    while parts.whole() is None:
        wrong = next(strays, None)
        if wrong is not None and wrong <= len(piece):
            part = read_slice(write_slice(piece, Slice(offset=wrong, length=size)))
            due = wrong == parts.offset < len(piece)
            assert parts.add(part) == due
            continue
        assert parts.add(read_slice(write_slice(piece, Slice(offset=parts.offset, length=size))))
    assert parts.whole() == piece
    assert parts.true()


def test_slices_of_something_else_are_not_taken_and_a_false_whole_begins_anew() -> None:
    parts = Assembly(digest(b"honest"), 6)
    assert not parts.add(PieceSlice(digest(b"other"), 0, 6, b"hon"))
    assert not parts.add(PieceSlice(digest(b"honest"), 0, 9, b"hon"))
    assert not parts.add(PieceSlice(digest(b"honest"), 3, 6, b"est"))
    assert not parts.add(PieceSlice(digest(b"honest"), 0, 6, b""))
    assert parts.add(PieceSlice(digest(b"honest"), 0, 6, b"forged"))
    assert not parts.true()
    assert parts.offset == 0


class SlowDepot:
    """Answers one want after the other, as the depot does, and counts what it sends."""

    def __init__(self, way: Way | None = None) -> None:
        self.wants: list[Want] = []
        self.sent = 0
        self.recipe = write_recipe([(hashlib.sha256(piece).digest(), len(piece)) for piece in PIECES])
        whole = b"".join(PIECES)
        self.artifact = Artifact(
            sha256=digest(whole), length=len(whole), recipe=digest(self.recipe), pieces=len(PIECES)
        )
        self.forge = 0
        self.fetcher = PieceFetcher(self, way=way, chance=lambda: 0.0)  # type: ignore[arg-type]
        # As on a link that was found to be slow.
        self.fetcher._pace = Slow(lambda: 0.0)

    def send_parcel(self, kind: str, raw: bytes) -> bool:
        want = Want.read(raw)
        self.wants.append(want)
        wanted = [piece for piece in PIECES if digest(piece) in want.pieces] or [self.recipe]
        for data in wanted:
            asyncio.get_running_loop().call_soon(self.answer, data, want.slice)
        return True

    def answer(self, data: bytes, part: Slice | None) -> None:
        if part is None:
            raw = write_piece(data)
            self.refusal = self.fetcher.received(raw)
        else:
            raw = write_slice(data, part)
            if self.forge:
                self.forge -= 1
                raw = raw[:-1] + bytes([raw[-1] ^ 1])
            self.refusal = self.fetcher.received_slice(raw)
        self.sent += len(raw)


class Slow(Pace):
    """Of a link that carries little."""

    def completed(self, took_s: float, round_trip_s: float = 0.0) -> None:
        super().completed(max(took_s, 1.0), round_trip_s)


async def test_a_large_piece_is_asked_for_in_slices_that_fit_the_link(tmp_path: Path) -> None:
    depot = SlowDepot()
    await depot.fetcher.fetch(depot.artifact, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"".join(PIECES)
    sliced = [want.slice for want in depot.wants if want.slice is not None]
    assert sliced
    assert max(part.length for part in sliced) <= 64_000
    assert depot.sent < 1.05 * depot.artifact.length, "nothing was asked for twice"
    assert depot.fetcher.unsolicited == 0


async def test_forged_slices_are_refused_and_made_up_for(tmp_path: Path) -> None:
    depot = SlowDepot()
    depot.forge = 1
    await depot.fetcher.fetch(depot.artifact, tmp_path / "file")
    assert depot.fetcher.refused == 1
    assert (tmp_path / "file").read_bytes() == b"".join(PIECES)


def test_the_slice_follows_the_window_and_never_exceeds_what_is_left() -> None:
    pace = Pace(lambda: 0.0)
    assert pace.slice(START_WINDOW_BYTES, 0) is None
    assert pace.slice(START_WINDOW_BYTES + 1, 0) == START_WINDOW_BYTES
    assert pace.slice(100_000, 0, granted_bytes=5_000) == 5_000
    assert pace.slice(100_000, 99_000) == 1_000
    for _ in range(20):
        pace.stalled(some_came=False)
    assert pace.slice(100_000, 0) == MIN_WINDOW_BYTES


async def test_while_bytes_come_in_a_piece_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.parcels.windows.MIN_STALL_S", 0.05)
    loop, looks = asyncio.get_running_loop(), 0

    def receiving() -> float:
        nonlocal looks
        looks += 1
        return loop.time()

    depot = SlowDepot(Way(receiving=receiving))
    depot.answer = lambda data, part: None  # type: ignore[method-assign]
    fetching = asyncio.create_task(depot.fetcher._collect(None, {depot.artifact.recipe: 2_000}, lambda *_: None))
    async with asyncio.timeout(10):
        while looks < 20:  # noqa: ASYNC110 - 20 times the stall, with a byte each
            await asyncio.sleep(0)
    assert len(depot.wants) == 1
    depot.fetcher.received(write_piece(depot.recipe))
    await fetching


async def test_what_was_given_up_as_lost_may_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.parcels.windows.MIN_STALL_S", 0.01)
    monkeypatch.setattr("edge_runtime.parcels.windows.MIN_PAUSE_S", 60.0)
    depot = SlowDepot()
    depot.fetcher._pace = Pace(lambda: 1.0)
    depot.answer = lambda data, part: None  # type: ignore[method-assign]
    taken: list[bytes] = []
    work = depot.fetcher._collect(None, {depot.artifact.recipe: 108}, lambda _, data: taken.append(data))
    rest, rests = depot.fetcher._rest, asyncio.Event()

    async def told(deadline: float) -> None:
        rests.set()
        await rest(deadline)

    monkeypatch.setattr(depot.fetcher, "_rest", told)
    fetching = asyncio.create_task(work)
    async with asyncio.timeout(10):
        await rests.wait()
    depot.fetcher.received(write_piece(depot.recipe))
    depot.fetcher.connected()
    async with asyncio.timeout(5):
        await fetching
    assert taken == [depot.recipe]
    assert len(depot.wants) == 1
