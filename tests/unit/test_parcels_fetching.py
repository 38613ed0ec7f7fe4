"""The fetcher against a depot in memory that loses, repeats and lies."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import FetchError
from edge_runtime.parcels.fetching import PieceFetcher
from edge_runtime.parcels.windows import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, Pace
from schemas.aggregator import Artifact
from schemas.depot import MAX_WANT, Want, write_piece, write_recipe


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Depot:
    """Answers wants through the loop, as the link does. `online` False drops the connection."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.data = b"".join(pieces)
        self.recipe = write_recipe([(hashlib.sha256(piece).digest(), len(piece)) for piece in pieces])
        self.objects = {digest(piece): piece for piece in pieces} | {digest(self.recipe): self.recipe}
        self.artifact = Artifact(
            sha256=digest(self.data), length=len(self.data), recipe=digest(self.recipe), pieces=len(pieces)
        )
        self.fetcher = PieceFetcher(self, patience_s=30)  # type: ignore[arg-type]
        self.online = True
        self.refused = asyncio.Event()
        self.wants: list[Want] = []
        self.sent = 0

    def send_parcel(self, kind: str, raw: bytes) -> bool:
        if not self.online:
            self.refused.set()
            return False
        want = Want.read(raw)
        self.wants.append(want)
        assert kind == "want"
        for name in want.pieces or [want.recipe]:
            if name in self.objects:
                self.sent += 1
                asyncio.get_running_loop().call_soon(self.fetcher.received, write_piece(self.objects[name]))
        return True


def pieces(count: int = 50, size: int = 30_000, seed: int = 1) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(source.randint(1, size)) for _ in range(count)]


async def test_every_piece_is_asked_for_once_in_bounded_windows(tmp_path: Path) -> None:
    depot = Depot(pieces())
    await depot.fetcher.fetch(depot.artifact, tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").read_bytes() == depot.data
    assert depot.sent == 51
    assert max(len(want.pieces) for want in depot.wants) <= MAX_WANT
    assert all(want.recipe == depot.artifact.recipe for want in depot.wants)


async def test_a_piece_that_occurs_often_is_fetched_once(tmp_path: Path) -> None:
    piece, other = b"p" * 1_000, b"o" * 500
    depot = Depot([piece, other, piece, piece])
    await depot.fetcher.fetch(depot.artifact, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == depot.data
    assert depot.sent == 3


async def test_a_longer_file_from_another_version_is_reused_and_cut(tmp_path: Path) -> None:
    depot = Depot(pieces())
    (tmp_path / "file").write_bytes(depot.data + b"tail of another")
    await depot.fetcher.fetch(depot.artifact, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == depot.data
    assert depot.sent == 1, "only the recipe"


async def test_offline_it_waits_and_goes_on_when_the_link_is_back(tmp_path: Path) -> None:
    depot = Depot(pieces())
    depot.online = False
    fetching = asyncio.create_task(depot.fetcher.fetch(depot.artifact, tmp_path / "file"))
    await depot.refused.wait()
    depot.online = True
    depot.fetcher.connected()
    async with asyncio.timeout(5):
        await fetching
    assert (tmp_path / "file").read_bytes() == depot.data


async def test_patience_ends_with_our_error_and_keeps_what_came(tmp_path: Path) -> None:
    depot = Depot(pieces())
    clock = iter(range(0, 10**6, 7))
    depot.fetcher = PieceFetcher(depot, patience_s=20, monotonic=lambda: float(next(clock)))  # type: ignore[arg-type]
    missing = list(depot.objects)[-2]
    lost = depot.objects.pop(missing)
    depot.fetcher._pace = Quick(lambda: 0.0)
    with pytest.raises(FetchError, match="none came for 20 s") as raised:
        await depot.fetcher.fetch(depot.artifact, tmp_path / "file")
    assert raised.value.reason == "timeout"
    depot.objects[missing] = lost
    before = depot.sent
    await depot.fetcher.fetch(depot.artifact, tmp_path / "file")
    assert depot.sent == before + 2, "the recipe and the one that was missing"


class Quick(Pace):
    stall_s = 0.05

    def pause_s(self) -> float:
        return 0.0


async def test_a_recipe_that_does_not_make_the_artifact_is_refused(tmp_path: Path) -> None:
    depot = Depot(pieces())
    longer = depot.artifact.model_copy(update={"length": depot.artifact.length + 1})
    with pytest.raises(FetchError, match="its recipe makes") as raised:
        await depot.fetcher.fetch(longer, tmp_path / "file")
    assert raised.value.reason == "wrong_digest"
    other = depot.artifact.model_copy(update={"sha256": digest(b"?")})
    with pytest.raises(FetchError, match="together they have another digest"):
        await depot.fetcher.fetch(other, tmp_path / "file")
    assert not (tmp_path / "file").exists()


async def test_a_full_disk_is_said_before_and_while_it_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depot = Depot(pieces())
    with monkeypatch.context() as patched:
        patched.setattr("edge_runtime.parcels.fetching.shutil.disk_usage", lambda _: SimpleNamespace(free=1_000))
        with pytest.raises(FetchError, match="make room") as raised:
            await depot.fetcher.fetch(depot.artifact, tmp_path / "file")
    assert raised.value.reason == "disk_full"

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_runtime.parcels.fetching.os.pwrite", full)
    with pytest.raises(FetchError) as raised:
        await depot.fetcher.fetch(depot.artifact, tmp_path / "file")
    assert raised.value.reason == "disk_full"


def test_tampered_bytes_are_refused_even_unasked_and_honest_ones_ignored() -> None:
    fetcher = Depot(pieces()).fetcher
    raw = write_piece(b"a piece")
    refusal = fetcher.received(raw[:-1] + b"?")
    assert refusal is not None
    assert (refusal.reason, refusal.details) == ("wrong_digest", {"piece": digest(b"a piece"), "bytes": 39})
    assert fetcher.received(raw) is None
    oversized = fetcher.received(bytes(300_000))
    assert oversized is not None
    assert oversized.reason == "oversized"
    assert (fetcher.refused, fetcher.unsolicited) == (2, 1)


@given(st.lists(st.sampled_from(["fast", "slow", "partly", "lost"]), max_size=60), st.integers(1, 262_144))
def test_the_window_stays_in_bounds_whatever_the_link_does(link: list[str], length: int) -> None:
    pace = Pace(lambda: 0.5)
    missing = {str(n): length for n in range(100)}
    for event in link:
        window = pace.window(missing, MAX_WANT)
        assert 1 <= len(window) <= MAX_WANT
        assert len(window) == 1 or len(window) * length <= pace.window_bytes
        if event in {"fast", "slow"}:
            pace.completed(0.001 if event == "fast" else 30.0)
        else:
            pace.stalled(some_came=event == "partly")
        assert MIN_WINDOW_BYTES <= pace.window_bytes <= MAX_WINDOW_BYTES
        assert 2 <= pace.stall_s <= 60
        assert 0 < pace.pause_s() <= 30
