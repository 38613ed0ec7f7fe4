"""The disk that a power cut leaves behind, as a fold of what a program did to it. Pure.

What was synced is there. What was written since may be there, in part or not at all, in any order between files and
within a file; a torn write ends at a sector. A new name is there once its file or its folder was synced, as on ext4,
xfs and btrfs; names that were not synced are lost from the last one backwards, since those file systems journal them.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

SECTOR = 512
_RECORD = struct.Struct("<cQQQI")


@dataclass(frozen=True)
class Effect:
    """One record of the log."""

    op: str
    inode: int
    offset: int
    path: str
    data: bytes


def read_log(raw: bytes) -> Iterator[Effect]:
    """Records in order; a record that a kill cut short is the last."""
    at = 0
    while at + _RECORD.size <= len(raw):
        op, inode, offset, size, length = _RECORD.unpack_from(raw, at)
        start = at + _RECORD.size
        body = start + length
        carried = size if op in b"wrp" else 0
        if body + carried > len(raw):
            return
        yield Effect(op.decode(), inode, offset, raw[start:body].decode(), raw[body : body + carried])
        at = body + carried


@dataclass
class File:
    """Content that is safe, and what was done to it since the last sync: (offset, data) or (length, None)."""

    safe: bytearray = field(default_factory=bytearray)
    since: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.since:
            _apply(self.safe, *change)
        self.since.clear()

    def guess(self, rng: random.Random | None, *, keep: bool) -> bytes:
        """What is found afterwards: all of it, nothing since the sync, or anything in between."""
        content = bytearray(self.safe)
        for offset, data in self.since:
            if keep or (rng is not None and rng.random() < 0.5):
                torn = data is not None and rng is not None and not keep and rng.random() < 0.3
                _apply(content, offset, _torn(data, rng) if torn and data and rng else data)
        return bytes(content)


def _torn(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(0, len(data), SECTOR) if len(data) > SECTOR else 0]


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


@dataclass
class Disk:
    """Names and files while a log is read."""

    names: dict[str, File | None] = field(default_factory=dict)
    """What the program sees; None is a folder."""
    safe_names: dict[str, File | None] = field(default_factory=dict)
    unsafe: list[tuple[str, File | None, str | None]] = field(default_factory=list)
    """Changes of names since their last sync: name, what it names now, and whose name it was before (rename)."""
    promises: list[dict[str, Any]] = field(default_factory=list)
    _inodes: dict[int, File] = field(default_factory=dict)

    def apply(self, effect: Effect) -> bool:
        """Take one record; whether it may have changed what a cut leaves behind."""
        match effect.op:
            case "p":
                self.promises.append(json.loads(effect.data))
                return False
            case "o":
                return self._open(effect)
            case "w":
                self._inodes[effect.inode].since.append((effect.offset, effect.data))
            case "t":
                self._inodes[effect.inode].since.append((effect.offset, None))
            case "s":
                self._sync(effect)
            case "r":
                self._rename(effect.path, effect.data.decode())
            case "u" | "d":
                del self.names[effect.path]
                self.unsafe.append((effect.path, None, ""))
            case "m":
                self.names[effect.path] = None
                self.unsafe.append((effect.path, None, None))
        return True

    def after_cut(self, rng: random.Random | None = None, *, keep: bool = False) -> dict[str, bytes | None]:
        """Files by name as the next start finds them; folders are None. Without `rng` nothing unsynced survives."""
        names = dict(self.safe_names)
        survivors = len(self.unsafe) if keep else rng.randint(0, len(self.unsafe)) if rng is not None else 0
        for change in self.unsafe[:survivors]:
            _rename_in(names, change)
        found: dict[str, bytes | None] = {}
        for name, file in names.items():
            if not name.endswith("-shm"):  # SQLite makes it anew from the log
                found[name] = None if file is None else file.guess(rng, keep=keep)
        return found

    def _open(self, effect: Effect) -> bool:
        changed = False
        if effect.path not in self.names:
            file = self._inodes[effect.inode] = File()
            self.names[effect.path] = file
            self.unsafe.append((effect.path, file, None))
            changed = True
        if effect.offset:  # O_TRUNC
            self._inodes[effect.inode].since.append((0, None))
            changed = True
        return changed

    def _sync(self, effect: Effect) -> None:
        file = self._inodes.get(effect.inode)
        named = self.names.get(effect.path)
        if file is not None and named is file:
            file.sync()
            self._settle(lambda name: name == effect.path or effect.path.startswith(f"{name}/"))
        elif file is None or named is None:
            self._settle(lambda name: str(PurePosixPath(name).parent) == effect.path)
        else:
            file.sync()

    def _settle(self, settled: Any) -> None:
        rest = []
        for change in self.unsafe:
            if settled(change[0]) or (change[2] and settled(change[2])):
                _rename_in(self.safe_names, change)
            else:
                rest.append(change)
        self.unsafe = rest

    def _rename(self, old: str, new: str) -> None:
        file = self.names.pop(old)
        self.names[new] = file
        self.unsafe.append((new, file, old))


def _rename_in(names: dict[str, File | None], change: tuple[str, File | None, str | None]) -> None:
    name, file, before = change
    if before == "":  # removed
        names.pop(name, None)
        return
    if before is not None:
        names.pop(before, None)
    names[name] = file
