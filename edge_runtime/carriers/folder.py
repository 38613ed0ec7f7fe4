"""A folder as a carrier: a stick that somebody takes along, or a directory that something else keeps in sync.

    DIR/causeway/up/<bundle>.<index>.bundle                     to the platform
    DIR/causeway/down/<fleet>.<device>/<bundle>.<index>.bundle  to a device
    DIR/causeway/pieces/<aa>/<sha256>                           parts of updates, and their recipes

The folder is treated as a peer on its way to the platform: what is written into it is a copy like any other, and takes
its share with it. What is read from it takes its share away.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edge_runtime.carriers.ages import Moment, elapsed_s
from edge_runtime.carriers.custodian import Custodian
from edge_runtime.carriers.pieces import PieceFolder, piece_files, read_bounded, read_piece_file
from edge_runtime.carriers.port import FragmentKey
from edge_runtime.carriers.routing import Carried, Meeting, offers, share
from edge_runtime.carriers.store import machine_moment
from edge_runtime.errors import EdgeError
from edge_runtime.folder import write_durable
from edge_runtime.logs import Log
from schemas.bundles import MAX_FRAGMENTS, MAX_FRAME_BYTES, MAX_LIFETIME_S, Parcel, read_parcel
from schemas.errors import ContractError
from schemas.events import PLATFORM_RECIPIENT, device_of
from schemas.ids import Address

log = Log(__name__)

ROOT, UP, DOWN, PIECES = "causeway", "up", "down", "pieces"
MAX_FILES = 8_192
"""Looked at in one folder; more are left for later."""
GIVER = "folder"
_NAME = re.compile(r"([0-7][0-9A-HJKMNP-TV-Z]{25})\.([0-9]{1,2})\.bundle")
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class FolderError(EdgeError):
    """A folder that cannot be read or written."""

    reason = "folder"


@dataclass
class Exported:
    """What was written.

    Attributes:
        present: fragments that were there already.
        problem: why this device's own letters are not among them, if so.
    """

    bundles: int = 0
    fragments: int = 0
    bytes: int = 0
    present: int = 0
    problem: str | None = None


@dataclass
class Imported:
    """What was taken over.

    Attributes:
        arrived: fragments for this device.
        complete: bundles for this device of which every fragment is here now.
        carried: fragments for others.
        refused: files that are not what they claim to be.
        no_room: fragments or pieces that found none.
    """

    arrived: int = 0
    complete: int = 0
    carried: int = 0
    pieces: int = 0
    piece_bytes: int = 0
    refused: int = 0
    no_room: int = 0


@dataclass
class FolderCarrier:
    """One folder and this device's custodian.

    Args:
        custodian: of this device.
        pieces: where parts of updates are kept; None to leave them where they are.
        directory: the one that holds, or will hold, `causeway/`.
    """

    custodian: Custodian
    pieces: PieceFolder | None
    directory: Path
    _idle: dict[Path, tuple[int, int, bool]] = field(default_factory=dict)
    """Files that were looked at and had nothing for us, by time of change and size."""

    @property
    def root(self) -> Path:
        """What is ours in the folder."""
        return self.directory / ROOT

    def export(self, *, own: bool = True, urgent: bool = False) -> Exported:
        """Write what routing grants.

        Args:
            own: this device's own letters too, and what it carries to the platform; otherwise only what is for devices.
            urgent: somebody waits for it; if the copies of the open bundles are used up, new ones are made.

        Raises:
            FolderError: if the folder cannot be written; what was written stands.
            OutboxError: if the device's own disk does not do its part.
        """
        custodian, done = self.custodian, Exported()
        with self._explained("write to"):
            if not self.directory.is_dir():
                raise FolderError(
                    f"write to {self.directory}: there is no such folder; is the stick mounted?", reason="no_folder"
                )
            self._refuse_links()
            has = self._present()
            if own:
                custodian.packer.pack(urgent=urgent)
            if urgent and any(one.own and not one.copies and one.key not in has for one in custodian.passing()):
                custodian.packer.pack(urgent=True, anew=True)
            self._tidy(has)
            done.problem = custodian.packer.problem
            bundles: set[str] = set()
            for key in offers(custodian.passing(), _meeting(own=own), has=has):
                size = self._write(key, _meeting(own=own))
                if size:
                    bundles.add(key[0])
                    done.fragments, done.bytes = done.fragments + 1, done.bytes + size
        done.bundles, done.present = len(bundles), len(has)
        if done.fragments:
            log.info("folder.exported", folder=str(self.directory), fragments=done.fragments, bytes=done.bytes)
        return done

    def take(self) -> Imported:
        """Take over what is for this device, and what it may carry.

        Raises:
            FolderError: if the folder cannot be read.
            OutboxError: if the device's own disk does not do its part; what was taken stands.
        """
        custodian, done = self.custodian, Imported()
        own = self.root / DOWN / _folder_of(custodian.address)
        with self._explained("read"):
            if not self.directory.is_dir():
                raise FolderError(
                    f"read {self.directory}: there is no such folder; is the stick mounted?", reason="no_folder"
                )
            self._refuse_links()
            if not self.root.is_dir():
                raise FolderError(
                    f"read {self.root}: nothing is there; was this folder ever exported to?", reason="nothing_there"
                )
            for path, _ in _bundles(own):
                self._take_own(path, done)
            idle = self._idle
            self._idle = {}
            for folder in self._others():
                for path, key in _bundles(folder):
                    self._take_other(path, key, idle, done)
            if self.pieces is not None:
                self._take_pieces(self.pieces, done)
        done.complete = len(custodian.store.whole(custodian.address.source))
        if done.arrived or done.carried or done.pieces:
            log.info("folder.imported", folder=str(self.directory), **asdict(done))
        return done

    def _refuse_links(self) -> None:
        """Whoever prepared the stick must not choose where this device writes."""
        down = self.root / DOWN
        below = down.iterdir() if down.is_dir() and not down.is_symlink() else ()
        for folder in (self.root, self.root / UP, down, *below):
            if folder.is_symlink():
                raise FolderError(f"use {folder}: it is a link; delete it, or take another stick", reason="folder_link")

    def _write(self, key: FragmentKey, meeting: Meeting) -> int:
        store = self.custodian.store
        facts, parcel = store.facts(key), store.load(key)
        granted = share(facts, meeting) if facts is not None else None
        if facts is None or parcel is None or granted is None or not granted.given:
            return 0
        raw = parcel.on_its_way(hops=facts.hops + 1, copies=granted.given, age_s=parcel.way.age_s).write()
        folder = self.root / (
            UP if facts.destination == PLATFORM_RECIPIENT else f"{DOWN}/{_folder_of(device_of(facts.destination))}"
        )
        # First the share, so that it cannot go twice. Nobody confirms for a folder, and it may be lost: the fragment
        # stays here, to be delivered directly if there is a way.
        if not store.give(key, was=facts.copies, kept=granted.kept):
            return 0
        try:
            write_durable(folder / f"{key[0]}.{key[1]}.bundle", raw, 0o644)
        except OSError:
            store.own_more(key, granted.given)
            raise
        return len(raw)

    def _take_own(self, path: Path, done: Imported) -> None:
        parcel = self._read(path, done)
        if parcel is None:
            return
        verdict = self.custodian.receive(parcel, GIVER)
        done.arrived += verdict == "arrived"
        done.refused += verdict == "refused"
        done.no_room += verdict == "full"
        if verdict in {"arrived", "held"}:
            _remove(path)

    def _take_other(
        self, path: Path, key: FragmentKey, idle: dict[Path, tuple[int, int, bool]], done: Imported
    ) -> None:
        custodian, store = self.custodian, self.custodian.store
        if store.is_done(key[0]):
            _remove(path)
            return
        about = path.lstat()
        stamp = (about.st_mtime_ns, about.st_size, custodian.linked)
        known = store.facts(key)
        if idle.get(path) == stamp or store.was_seen(key) or (known is not None and known.copies):
            self._idle[path] = stamp
            return
        parcel = self._read(path, done)
        granted = self._granted(parcel) if parcel is not None else None
        if parcel is None or granted is None:
            self._idle[path] = stamp
            return
        hops = parcel.way.hops + 1
        verdict = custodian.receive(parcel.on_its_way(hops=hops, copies=1, age_s=parcel.way.age_s), GIVER)
        done.refused += verdict == "refused"
        done.no_room += verdict == "full"
        if verdict != "kept":
            self._idle[path] = stamp
            return
        done.carried += 1
        left = parcel.on_its_way(hops=parcel.way.hops, copies=max(1, granted[1]), age_s=parcel.way.age_s)
        if _remove(path) if not granted[1] else _rewrite(path, left):
            store.own_more(key, granted[0])

    def _granted(self, parcel: Parcel) -> tuple[int, int] | None:
        """Copies that this device gets, and that the folder keeps; the folder waits with its last one like anybody."""
        head, way = parcel.head, parcel.way
        facts = Carried(
            key=parcel.key,
            origin=head.origin,
            destination=head.destination,
            priority=head.priority,
            lifetime_s=head.lifetime_s,
            hops=way.hops,
            copies=way.copies,
            age_s=way.age_s,
            bytes=0,
        )
        meeting = Meeting(self.custodian.address.source, gateway=self.custodian.linked, linked=False)
        granted = share(facts, meeting)
        return (granted.given, granted.kept) if granted is not None else None

    def _take_pieces(self, pieces: PieceFolder, done: Imported) -> None:
        folder, room = self.root / PIECES, pieces.room()
        for path in piece_files(folder):
            if pieces.holds(path.name):
                continue
            data = read_piece_file(folder, path.name)
            if data is None:
                done.refused += 1
            elif len(data) > room:
                done.no_room += 1
            else:
                pieces.put(path.name, data)
                room -= len(data)
                done.pieces, done.piece_bytes = done.pieces + 1, done.piece_bytes + len(data)
        if done.pieces:
            os.sync()

    def _read(self, path: Path, done: Imported) -> Parcel | None:
        raw = read_bounded(path, MAX_FRAME_BYTES)
        try:
            parcel = read_parcel(raw if raw is not None else b"")
        except ContractError as error:
            done.refused += 1
            log.warning("folder.bad_file", file=str(path), reason=error.reason, message=str(error))
            return None
        # The time in the folder counts, as far as the clocks tell it.
        way, lying = parcel.way, elapsed_s(Moment("folder", 0.0, path.lstat().st_mtime), machine_moment())
        return parcel.on_its_way(hops=way.hops, copies=way.copies, age_s=min(way.age_s + lying, 2 * MAX_LIFETIME_S))

    def _present(self) -> set[FragmentKey]:
        folders = [self.root / UP, *_folders(self.root / DOWN)]
        return {key for folder in folders for _, key in _bundles(folder)}

    def _others(self) -> Iterator[Path]:
        yield self.root / UP
        own = _folder_of(self.custodian.address)
        yield from (folder for folder in _folders(self.root / DOWN) if folder.name != own)

    def _tidy(self, has: set[FragmentKey]) -> None:
        """Take out what has arrived, and own bundles that newer ones have replaced.

        Own ones that this device knows nothing of stay: it may have lost its disk since, and they are all that is left.
        """
        for path, key in list(_bundles(self.root / UP)):
            if self.custodian.store.is_done(key[0]) and _remove(path):
                has.discard(key)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            step = "make room on it" if full else "see that it is whole and that you may write there"
            raise FolderError(
                f"{what} {self.directory}: {error.strerror}; {step}",
                reason="folder_full" if full else "folder",
            ) from error


def _meeting(*, own: bool) -> Meeting:
    return Meeting("", gateway=True, linked=not own)


def _bundles(folder: Path) -> Iterator[tuple[Path, FragmentKey]]:
    """Files that are named like fragments, in order; at most `MAX_FILES`."""
    if not folder.is_dir() or folder.is_symlink():
        return
    names = sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name))
    if len(names) > MAX_FILES:
        log.warning("folder.crowded", folder=str(folder), files=len(names), looked_at=MAX_FILES)
    for name in names[:MAX_FILES]:
        match = _NAME.fullmatch(name)
        if match is not None and int(match[2]) < MAX_FRAGMENTS:
            yield folder / name, (match[1], int(match[2]))


def _folders(parent: Path) -> list[Path]:
    return sorted(folder for folder in parent.iterdir() if folder.is_dir()) if parent.is_dir() else []


def _folder_of(address: Address) -> str:
    return f"{address.fleet}.{address.device}"


def _remove(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        return False
    return True


def _rewrite(path: Path, parcel: Parcel) -> bool:
    try:
        write_durable(path, parcel.write(), 0o644)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        return False
    return True
