"""An outbox with clocks that stand still, and with disks that fail for real."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.errors import OutboxError
from edge_runtime.letters.outbox import Outbox
from edge_runtime.settings import OutboxLimits
from schemas.events import Untyped

LIMITS = OutboxLimits(max_bytes=1 << 20, max_letters=100)


class Bench:
    """One outbox file; `now` is wall clock and age clock at the same time."""

    def __init__(self, folder: Path, limits: OutboxLimits = LIMITS) -> None:
        self.now = 1_000_000.0
        self.boot = "first"
        self.path = folder / "outbox.db"
        self.limits = limits
        self.open()

    def open(self) -> None:
        self.outbox = Outbox(self.path, self.limits, lambda: self.now, lambda: (self.boot, self.now), sends=True)

    def another(self) -> Outbox:
        """The same file, as another process has it open."""
        return Outbox(self.path, self.limits, lambda: self.now, lambda: (self.boot, self.now))

    def reopen(self) -> None:
        self.outbox.close()
        self.open()

    def add(self, number: int = 0, lane: str = "normal", latest: str | None = None, **more: object) -> str:
        return self.outbox.add("sample", Untyped(number=number, **more), lane, latest=latest)

    def sequences(self, lane: str = "normal", mark: int = 0) -> list[int]:
        run = self.outbox.run_above(lane, mark)
        return [letter.sequence for letter in self.outbox.load(lane, run)] if run else []

    def all_above(self, lane: str = "normal", mark: int = 0) -> list[tuple[int, str]]:
        """Everything that would be sent, run by run, as a courier that gets it all would see it."""
        found = []
        while (run := self.outbox.run_above(lane, mark)) is not None:
            letters = self.outbox.load(lane, run)
            assert letters, "a run without letters would never end"
            assert letters[0].floor == letters[0].sequence or letters[0].sequence == mark + 1
            found += [(letter.sequence, letter.id) for letter in letters]
            mark = letters[-1].sequence
        return found

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """As another program reads the file."""
        with sqlite3.connect(f"file:{self.path}?mode=ro", uri=True) as connection:
            found = connection.execute(query).fetchall()
        connection.close()
        return found

    def losses(self) -> list[tuple[object, ...]]:
        return self.rows("SELECT lane, first, last, reason, letters FROM losses ORDER BY epoch, lane, first")

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """No page more, until the end or until the file is closed."""
        database = self.outbox.database
        database.limit_pages(database.pages())
        yield
        with contextlib.suppress(OutboxError):
            database.limit_pages(1_000_000)


def fill(bench: Bench, letters: int = 24) -> list[str]:
    """Letters so large that a full disk takes none of them."""
    return [bench.add(number, text="x" * 20_000) for number in range(letters)]


def die(bench: Bench) -> None:
    """The process ends without a word: nothing of its memory is left."""
    bench.outbox._store.annex = None
    bench.outbox.close()


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A real file system of that size; needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    """`ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def fill_disk(ballast: Path) -> None:
    """Take every block that is left."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4_096))


@contextmanager
def failing_disk(folder: Path, image: Path) -> Iterator[Path]:
    """A real ext4 that `break_disk` can break; needs root, mkfs.ext4 and loop devices."""
    folder.mkdir()
    image.write_bytes(bytes(16 << 20))
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def break_disk(folder: Path) -> None:
    """What the kernel does to a file system whose disk returns errors: read-only at once, with files open."""
    subprocess.run(["mount", "-o", "remount,abort", str(folder)], check=True)
