"""`causeway bundle import`: what one file is keeps no other from being stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from ulid import ULID

from causeway.bundle.bring import bring
from causeway.bundle.folder import BundleFolder
from edge_runtime.carriers import listing
from services.kit.api.courier import BundleImportAnswer

FIRST, SECOND = sorted(str(ULID()) for _ in range(2))


class Courier:
    """Stores bundles of three fragments, each of which says what it is of."""

    def __init__(self) -> None:
        self.parts: dict[str, set[bytes]] = {}

    async def import_bundle(self, frame: bytes, waited_s: float = 0.0) -> BundleImportAnswer:
        assert waited_s >= 0
        if frame == b"junk":
            return BundleImportAnswer(state="refused", reason="malformed", message="it is no fragment")
        bundle, _, _ = frame.decode().partition(" ")
        parts = self.parts.setdefault(bundle, set())
        parts.add(frame)
        state = BundleImportAnswer(state="held", bundle=bundle, fleet="home", device="cam")
        return state.model_copy(update={"state": "stored", "stored": 1}) if len(parts) == 3 else state


def put(folder: Path, bundle: str, *frames: bytes) -> list[Path]:
    up = folder / "causeway" / "up"
    up.mkdir(parents=True, exist_ok=True)
    paths = [up / f"{bundle}.{index}.bundle" for index in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        path.write_bytes(frame)
    return paths


def parts(bundle: str, count: int = 3) -> list[bytes]:
    return [f"{bundle} {index}".encode() for index in range(count)]


async def test_a_file_that_is_not_of_the_bundle_keeps_the_rest_from_nothing_and_stays(tmp_path: Path) -> None:
    junk, stray, *genuine = put(tmp_path, FIRST, b"junk", f"{SECOND} 2".encode(), *parts(FIRST))
    put(tmp_path, SECOND, *parts(SECOND, 2))
    report = await bring(Courier(), BundleFolder(tmp_path))
    told = {origin.device: (origin.bundles, origin.reasons) for origin in report.origins}
    assert told[None] == ({"refused": 1}, [f"{FIRST}.0.bundle: it is no fragment"])
    assert told["cam"][0] == {"stored": 2}
    assert report.refused
    assert junk.exists()
    assert stray.exists(), "it may be all that is left of another bundle"
    assert not any(path.exists() for path in genuine)


async def test_a_bundle_with_a_damaged_part_counts_once(tmp_path: Path) -> None:
    paths = put(tmp_path, FIRST, *parts(FIRST, 2), b"junk")
    report = await bring(Courier(), BundleFolder(tmp_path))
    assert [origin.bundles for origin in report.origins] == [{"refused": 1}]
    assert all(path.exists() for path in paths)


async def test_what_is_left_is_counted_in_the_look_that_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_FILES", 3)
    put(tmp_path, FIRST, *parts(FIRST, 2))
    put(tmp_path, SECOND, *parts(SECOND, 2))
    assert (await bring(Courier(), BundleFolder(tmp_path))).left == 1
