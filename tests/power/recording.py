"""Runs a workload under the recorder, and lays imagined disks out as folders."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.power.disk import Disk, read_log

SOURCE = Path(__file__).with_name("recorder.c")
REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60.0
PROCESSES = os.cpu_count() or 1
"""Workloads that are killed at a time."""
BATCH = 64
"""So many kills are planned before it is looked at whether the workload has come to its end."""


def compiled(folder: Path) -> Path:
    """The recorder as a library; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: `apt-get install gcc libc6-dev`")
    library = folder / "recorder.so"
    if not library.exists():
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
        subprocess.run(command, check=True, timeout=TIMEOUT_S)
    return library


@dataclass(frozen=True)
class Recording:
    """What a workload did, and how it ended."""

    log: bytes
    root: Path
    killed: bool

    def promises(self) -> list[dict[str, Any]]:
        """All that it promised."""
        disk = Disk()
        for effect in read_log(self.log):
            disk.apply(effect)
        return disk.promises


def record(library: Path, folder: Path, workload: str, *arguments: str, crash_at: int | None = None) -> Recording:
    """Run `tests.power.workloads.WORKLOAD` on `folder/root`; with `crash_at` it is killed before that effect."""
    root, log = folder / "root", folder / "log"
    root.mkdir(parents=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "POWER_ROOT": str(root), "POWER_LOG": str(log)}
    if crash_at is not None:
        environment["POWER_CRASH_AT"] = str(crash_at)
    command = [sys.executable, "-m", f"tests.power.workloads.{workload}", str(root), *arguments]
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, timeout=TIMEOUT_S, capture_output=True, text=True, check=False
    )
    killed = done.returncode == -9
    if done.returncode != 0 and not (killed and crash_at is not None):
        raise AssertionError(f"workload {workload} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Recording(log.read_bytes(), root, killed)


def kill_at_effects(
    library: Path,
    folder: Path,
    workload: str,
    *arguments: str,
    kills: int | None,
    check: Callable[[Path, list[dict[str, Any]]], None],
) -> int:
    """Kill the workload before each effect, or before `kills` of them, evenly; `check` what is found. How many."""
    whole = record(library, folder / "whole", workload, *arguments)
    # The log has no failed effects, and does not say which opens may make or empty a file: there are some more.
    least = sum(effect.op in "wtsrumd" for effect in read_log(whole.log))

    def kill(at: int) -> bool:
        here = folder / str(at)
        recording = record(library, here, workload, *arguments, crash_at=at)
        assert recording.killed or at > least, f"the workload ended before effect {at}"
        try:
            check(recording.root, recording.promises())
        except AssertionError as error:
            raise AssertionError(f"killed before effect {at}") from error
        shutil.rmtree(here)
        return recording.killed

    with ThreadPoolExecutor(PROCESSES) as pool:
        if kills is not None:
            return sum(pool.map(kill, range(1, least + 1, max(1, least // kills))))
        done = 0
        while all(killed := list(pool.map(kill, range(done + 1, done + 1 + BATCH)))):
            done += BATCH
        return done + sum(killed)


def cuts(
    log: bytes, seed: int, guesses: int = 2
) -> Iterator[tuple[str, dict[str, bytes | None], list[dict[str, Any]]]]:
    """Every disk that a cut after each effect may leave behind, and what was promised until then.

    For each moment: nothing unsynced survives, all of it does (as after a kill), and `guesses` in between.
    """
    disk, rng = Disk(), random.Random(seed)
    for number, effect in enumerate(read_log(log)):
        if not disk.apply(effect):
            continue
        where = f"after effect {number} ({effect.op} {effect.path})"
        promises = list(disk.promises)
        yield f"{where}, unsynced lost", disk.after_cut(), promises
        yield f"{where}, killed", disk.after_cut(keep=True), promises
        for _ in range(guesses):
            yield f"{where}, some of it lost", disk.after_cut(rng), promises


def lay_out(found: dict[str, bytes | None], folder: Path) -> Path:
    """Write an imagined disk; what was there before goes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in sorted(found.items()):
        path = folder / name.lstrip("/")
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder
