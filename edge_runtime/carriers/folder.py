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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from edge_runtime.carriers.ages import Moment, elapsed_s
from edge_runtime.carriers.changes import remove, rewrite
from edge_runtime.carriers.custodian import Custodian
from edge_runtime.carriers.listing import Listed, devices, fragments
from edge_runtime.carriers.names import FragmentKey, Label, key_of, label_of
from edge_runtime.carriers.pieces import PieceFolder, piece_files, read_bounded, read_piece_file
from edge_runtime.carriers.port import Verdict
from edge_runtime.carriers.reports import Exported, Imported
from edge_runtime.carriers.routing import Carried, Meeting, facts_of, offers, share
from edge_runtime.carriers.store import machine_moment
from edge_runtime.errors import EdgeError
from edge_runtime.folder import write_durable
from edge_runtime.logs import Log
from schemas.bundles import MAX_FRAME_BYTES, MAX_LIFETIME_S, Parcel, read_parcel
from schemas.errors import ContractError
from schemas.events import PLATFORM_RECIPIENT, device_of
from schemas.ids import Address

log = Log(__name__)

ROOT, UP, DOWN, PIECES = "causeway", "up", "down", "pieces"
TAKE_S = 60.0
"""What is not judged by then is left for the next time, with what this device carries for others, and with its own."""
MAX_BAD_PIECES = 1_024
"""No more are looked at after so many that are not what they are named."""
MAX_REASONS = 16
"""Files that are named with what is wrong with them; more are counted."""
GIVER = "folder"


_Stamp = tuple[int, int, int, bool]


class FolderError(EdgeError):
    """A folder that cannot be read or written."""

    reason = "folder"


@dataclass(frozen=True, slots=True)
class _Idle:
    """When a file was looked at, by its time of change and size, and what it is of.

    Attributes:
        stamp: None where it could not be read, so that it is looked at again.
        label: None where it is no fragment.
        refused: whether it is not what it claims to be.
    """

    stamp: _Stamp | None
    label: Label | None
    refused: bool = False


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
    now: Callable[[], float] = time.monotonic
    _idle: dict[Path, _Idle] = field(default_factory=dict)
    """Files that were looked at and had nothing for us."""
    _before: dict[Path, _Idle] = field(default_factory=dict)
    """The same of the time before."""

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
            has -= self._tidy()
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
            self._before, self._idle = self._idle, {}
            # In a synced folder others take files out at any time.
            for path in self._in_time(fragments(own), done):
                with suppress(FileNotFoundError):
                    self._take_own(path, done)
            for path in self._in_time(self._others(), done) if custodian.carries else ():
                with suppress(FileNotFoundError):
                    self._take_other(path, done)
            if self.pieces is not None:
                self._take_pieces(self.pieces, done)
        done.complete = len(custodian.store.whole(custodian.address.source))
        if done.arrived or done.carried or done.pieces:
            log.info("folder.imported", folder=str(self.directory), **asdict(done))
        return done

    def _in_time(self, listed: Listed, done: Imported) -> Iterator[Path]:
        deadline = self.now() + TAKE_S
        done.left += listed.left
        for number, path in enumerate(listed.paths):
            if self.now() >= deadline:
                done.left += len(listed.paths) - number
                return
            yield path

    def _refuse_links(self) -> None:
        """Whoever prepared the stick must not choose where this device writes."""
        for folder in (self.root, self.root / UP, self.root / DOWN):
            _refuse_link(folder)

    def _write(self, key: FragmentKey, meeting: Meeting) -> int:
        store = self.custodian.store
        facts, parcel = store.facts(key), store.load(key)
        granted = share(facts, meeting) if facts is not None else None
        if facts is None or parcel is None or granted is None or not granted.given:
            return 0
        raw = parcel.on_its_way(hops=facts.hops + 1, copies=granted.given, age_s=parcel.way.age_s).write()
        path = self._path(facts)
        _refuse_link(path.parent)
        if os.path.lexists(path) and not self._displaces(facts, path):
            return 0
        # First the share, so that it cannot go twice. Nobody confirms for a folder, and it may be lost: the fragment
        # stays here, to be delivered directly if there is a way.
        if not store.give(key, was=facts.copies, kept=granted.kept):
            return 0
        try:
            write_durable(path, raw, 0o644)
        except OSError:
            store.own_more(key, granted.given)
            raise
        return len(raw)

    def _take_own(self, path: Path, done: Imported) -> None:
        stamp, was = self._stamp(path), self._before.get(path)
        if was is not None and was.stamp == stamp and was.label is None:
            self._still(path, was, done)
            return
        parcel = self._read(path, stamp, done)
        if parcel is None:
            return
        verdict = self._judged(path, parcel, done)
        done.arrived += verdict == "arrived"
        if verdict == "refused":
            # It is judged again: newer trust, or the end of another bundle, may mend it.
            self._idle[path] = _Idle(stamp, label_of(parcel.head), refused=True)
        elif verdict in {"arrived", "held"}:
            remove(path)

    def _take_other(self, path: Path, done: Imported) -> None:
        store = self.custodian.store
        stamp, was = self._stamp(path), self._before.get(path)
        if was is not None and was.stamp == stamp and (was.label is None or not store.is_done(was.label)):
            self._still(path, was, done)
            return
        parcel = self._read(path, stamp, done)
        if parcel is None:
            return
        label = label_of(parcel.head)
        if store.is_done(label):
            remove(path)
            return
        self._idle[path] = _Idle(stamp, label)
        key, granted = key_of(parcel), self._granted(parcel)
        known = store.facts(key)
        if granted is None or store.was_seen(key) or (known is not None and known.copies):
            return
        way = parcel.on_its_way(hops=parcel.way.hops + 1, copies=1, age_s=parcel.way.age_s)
        verdict = self._judged(path, way, done)
        if verdict not in {"kept", "full"}:
            self._idle[path] = _Idle(stamp, label, refused=verdict == "refused")
            return
        del self._idle[path]
        if verdict == "full":
            return  # there may be room the next time
        done.carried += 1
        left = parcel.on_its_way(hops=parcel.way.hops, copies=max(1, granted[1]), age_s=parcel.way.age_s)
        if remove(path) if not granted[1] else rewrite(path, left):
            store.own_more(key, granted[0])

    def _stamp(self, path: Path) -> _Stamp:
        about = path.lstat()
        return about.st_mtime_ns, about.st_ctime_ns, about.st_size, self.custodian.linked

    def _still(self, path: Path, was: _Idle, done: Imported) -> None:
        self._idle[path] = was
        done.refused += was.refused

    def _granted(self, parcel: Parcel) -> tuple[int, int] | None:
        """Copies that this device gets, and that the folder keeps; the folder waits with its last one like anybody."""
        facts = replace(facts_of(parcel), copies=parcel.way.copies)
        meeting = Meeting(self.custodian.address.source, gateway=self.custodian.linked, linked=False)
        granted = share(facts, meeting)
        return (granted.given, granted.kept) if granted is not None else None

    def _take_pieces(self, pieces: PieceFolder, done: Imported) -> None:
        folder, room, bad = self.root / PIECES, pieces.room(), 0
        for path in piece_files(folder):
            if pieces.holds(path.name):
                continue
            if bad >= MAX_BAD_PIECES:
                done.left += 1
                continue
            data = read_piece_file(folder, path.name)
            if data is None:
                bad += 1
                with suppress(FileNotFoundError):
                    self._refused(path, "it is not what it is named", done)
            elif len(data) > room:
                done.no_room += 1
            else:
                pieces.put(path.name, data)
                room -= len(data)
                done.pieces, done.piece_bytes = done.pieces + 1, done.piece_bytes + len(data)
        if done.pieces:
            os.sync()

    def _read(self, path: Path, stamp: _Stamp, done: Imported) -> Parcel | None:
        try:
            raw = read_bounded(path, MAX_FRAME_BYTES)
        except OSError as error:
            self._refused(path, f"it cannot be read: {error.strerror}", done)
            self._idle[path] = _Idle(None, None, refused=True)
            return None
        try:
            parcel = read_parcel(raw if raw is not None else b"")
        except ContractError as error:
            self._refused(path, str(error) if raw is not None else "it is no file that a fragment could be", done)
            self._idle[path] = _Idle(stamp, None, refused=True)
            return None
        # The time in the folder counts, as far as the clocks tell it.
        way, lying = parcel.way, elapsed_s(Moment("folder", 0.0, path.lstat().st_mtime), machine_moment())
        return parcel.on_its_way(hops=way.hops, copies=way.copies, age_s=min(way.age_s + lying, 2 * MAX_LIFETIME_S))

    def _judged(self, path: Path, parcel: Parcel, done: Imported) -> Verdict:
        judged = self.custodian.judge(parcel, GIVER)
        done.no_room += judged.verdict == "full"
        if judged.verdict == "refused":
            self._refused(path, judged.why, done)
        return judged.verdict

    def _refused(self, path: Path, why: str, done: Imported) -> None:
        """Raises FileNotFoundError if the file is not there any more."""
        path.lstat()
        done.refused += 1
        was = self._before.get(path)
        if (was is None or not was.refused) and len(done.reasons) < MAX_REASONS:
            done.reasons.append(f"{path.relative_to(self.root)}: {why}")
            log.warning("folder.bad_file", file=str(path), message=why)

    def _path(self, facts: Carried) -> Path:
        to = facts.destination
        folder = UP if to == PLATFORM_RECIPIENT else f"{DOWN}/{_folder_of(device_of(to))}"
        return self.root / folder / f"{facts.key[0]}.{facts.index}.bundle"

    def _present(self) -> set[FragmentKey]:
        """Of what could be written; the folder itself may hold any number of files."""
        return {
            one.key
            for one in self.custodian.passing()
            if os.path.lexists(path := self._path(one)) and not self._displaces(one, path)
        }

    def _displaces(self, facts: Carried, path: Path) -> bool:
        """Whether what lies in the place of a verified fragment is one that claims to be it.

        Only a device that holds both can tell, and reads the file for that.
        """
        doubtful = self.custodian.store.namesakes(facts) if facts.verified else ()
        there = _parcel(path) if doubtful else None
        return there is not None and key_of(there) in doubtful

    def _others(self) -> Listed:
        """What is not for this device: of all folders together no more than of one."""
        own, folders = _folder_of(self.custodian.address), devices(self.root / DOWN)
        found = fragments(self.root / UP, *(folder for folder in folders.paths if folder.name != own))
        return Listed(found.paths, found.left + folders.left)

    def _tidy(self) -> set[FragmentKey]:
        """Take out what has arrived, and own bundles that newer ones have replaced.

        Own ones that this device knows nothing of stay: it may have lost its disk since, and they are all that is left.
        """
        store, gone = self.custodian.store, set[FragmentKey]()
        finished = store.done_ids()
        for path in fragments(self.root / UP).paths:
            parcel = _parcel(path) if path.name[:26] in finished else None
            if parcel is not None and store.is_done(label_of(parcel.head)) and remove(path):
                gone.add(key_of(parcel))
        return gone

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


def _parcel(path: Path) -> Parcel | None:
    """A fragment, if it is one and can be read."""
    try:
        return read_parcel(read_bounded(path, MAX_FRAME_BYTES) or b"")
    except (ContractError, OSError):
        return None


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise FolderError(f"use {folder}: it is a link; delete it, or take another stick", reason="folder_link")


def _folder_of(address: Address) -> str:
    return f"{address.fleet}.{address.device}"
