"""`causeway bundle import`: what one file is keeps no other from being stored."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from ulid import ULID

from causeway.bundle.bring import bring
from causeway.bundle.folder import BundleFile, BundleFolder
from edge_runtime.carriers import listing
from services.kit.api.courier import BundleFrames, BundleImportAnswer

FIRST, SECOND = sorted(str(ULID()) for _ in range(2))


class Courier:
    """Stores bundles of three fragments, each of which says what it is of."""

    def __init__(self, receipt: BundleFrames | None = None) -> None:
        self.receipt = receipt
        self.parts: dict[str, set[bytes]] = {}

    async def import_bundle(self, frame: bytes, waited_s: float = 0.0) -> BundleImportAnswer:
        assert waited_s >= 0
        if frame == b"junk":
            return BundleImportAnswer(state="refused", reason="malformed", message="it is no fragment")
        bundle, _, _ = frame.decode().partition(" ")
        if frame.endswith(b"of another"):
            return BundleImportAnswer(state="held", bundle=bundle, fleet="home", device="other")
        parts = self.parts.setdefault(bundle, set())
        parts.add(frame)
        state = BundleImportAnswer(state="held", bundle=bundle, fleet="home", device="cam")
        return (
            state.model_copy(update={"state": "stored", "stored": 1, "receipt": self.receipt})
            if len(parts) == 3
            else state
        )


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


async def test_what_else_lies_under_the_name_of_a_bundle_that_is_stored_stays(tmp_path: Path) -> None:
    *genuine, stray, namesake = put(
        tmp_path, FIRST, *parts(FIRST), f"{SECOND} 2".encode(), f"{FIRST} of another".encode()
    )
    report = await bring(Courier(), BundleFolder(tmp_path))
    assert report.refused
    assert [path.exists() for path in genuine] == [False] * 3
    assert stray.exists(), "it may be all that is left of another bundle"
    assert namesake.exists(), "it may be all that is left of another device's"
    told = {origin.device: origin.bundles for origin in report.origins}
    assert told["cam"] == {"stored": 1, "refused": 1}


@pytest.mark.parametrize("fails", ["open", "lstat"])
async def test_a_file_that_cannot_be_read_is_told_and_keeps_the_rest_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    bad, *_ = put(tmp_path, FIRST, *parts(FIRST))
    others = put(tmp_path, SECOND, *parts(SECOND))
    real = BundleFile.read if fails == "open" else BundleFile.lay_s

    def broken(file: BundleFile, *given: float) -> bytes | float:
        if file.path == bad:
            raise PermissionError(errno.EACCES, "Permission denied", str(bad))
        return real(file, *given)

    monkeypatch.setattr(BundleFile, "read" if fails == "open" else "lay_s", broken)
    report = await bring(Courier(), BundleFolder(tmp_path))
    told = {origin.device: (origin.bundles, origin.reasons) for origin in report.origins}
    assert told[None][0] == {"refused": 1}
    assert f"{bad.name}: it cannot be read: Permission denied" in told[None][1][0]
    assert told["cam"][0] == {"stored": 1}
    assert bad.exists()
    assert not any(path.exists() for path in others)


async def test_a_folder_that_may_only_be_read_is_imported_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [*put(tmp_path, FIRST, *parts(FIRST)), *put(tmp_path, SECOND, *parts(SECOND))]

    def forbid(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", forbid)
    monkeypatch.setattr("causeway.bundle.folder.write_durable", forbid)
    courier = Courier(receipt=BundleFrames(bundle=SECOND, frames=["eA=="]))
    report = await bring(courier, BundleFolder(tmp_path))
    assert [origin.bundles for origin in report.origins] == [{"stored": 2}]
    assert (report.kept, report.receipts) == (6, 0)
    assert all(path.exists() for path in paths)
