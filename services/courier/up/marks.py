"""What IN holds of each lane: the marks, as a fold of IN on top of what was saved.

Marks must outlive IN's letters, so they are saved per device, together with one point of IN up to which the saved ones
are whole. What was saved is believed only as far as IN still bears it out: JetStream acknowledges before it fsyncs and
may be restored from a backup, and a mark that promises more than IN holds would lose letters. A mark may go backwards;
the devices then send again what they keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.events import Lane
from schemas.ids import Address, Count, Ulid
from services.courier.up.ordering import Gap, LaneKey

MAX_EPOCHS = 8
"""Of one device; the oldest is forgotten."""


class SavedLane(BaseModel):
    """One lane: its mark, IN's sequence of the letter that set it, and how many of its letters will never come."""

    mark: Count
    at: Count = 0
    lost: Count = 0
    head: Ulid | None = None
    """Id of the letter that set the mark."""


class SavedDevice(BaseModel):
    """Everything about one device; epochs in the order in which they first spoke.

    Strict, since JetStream writes letters where it is told (decision 0008), and such a one says nothing of marks.
    """

    model_config = ConfigDict(extra="forbid")

    epochs: dict[Ulid, dict[Lane, SavedLane]]
    session: Ulid | None = None
    active: Ulid | None = None
    spoke: float = 0.0
    """The epoch whose letter came last from the device itself, and when IN took it, in seconds since 1970."""


class SavedPoint(BaseModel):
    """IN up to here is in the saved marks."""

    sequence: int
    message_id: str


@dataclass(frozen=True, slots=True)
class InState:
    """What IN says of itself: its bounds, and the id of its message at the saved point (None if it is gone)."""

    first: int
    last: int
    id_at_point: str | None


@dataclass(frozen=True, slots=True)
class Voice:
    """The epoch in which a device itself speaks, as of a moment in seconds since 1970."""

    epoch: str
    at: float


@dataclass(frozen=True, slots=True)
class Base:
    """Where a replay begins, and whether what was saved was believed whole."""

    marks: Marks
    replay_from: int
    intact: bool


class Marks:
    """Marks of every lane. `flat` is what ordering reads."""

    def __init__(self) -> None:
        self.flat: dict[LaneKey, int] = {}
        self._at: dict[LaneKey, int] = {}
        self._lost: dict[LaneKey, int] = {}
        self._heads: dict[LaneKey, str] = {}
        self._voices: dict[Address, Voice] = {}
        self._epochs: dict[Address, list[str]] = {}
        self._changed: set[Address] = set()

    def of(self, address: Address, epoch: str) -> dict[str, int]:
        """Marks of one epoch by lane; a lane that never spoke is absent."""
        keys = (LaneKey(address.fleet, address.device, epoch, lane) for lane in ("control", "normal", "bulk"))
        return {key.lane: self.flat[key] for key in keys if key in self.flat}

    def heads(self, address: Address, epoch: str) -> dict[str, str]:
        """Ids of the letters at the marks of one epoch, where they are known."""
        keys = (LaneKey(address.fleet, address.device, epoch, lane) for lane in ("control", "normal", "bulk"))
        return {key.lane: self._heads[key] for key in keys if key in self._heads}

    def head(self, key: LaneKey) -> tuple[str, int] | None:
        """Id of the letter at a lane's mark and its place in IN, if known."""
        head = self._heads.get(key)
        return None if head is None else (head, self._at.get(key, 0))

    def places(self, address: Address, epoch: str) -> list[int]:
        """Where IN holds the letters at the marks of one epoch."""
        keys = (LaneKey(address.fleet, address.device, epoch, lane) for lane in ("control", "normal", "bulk"))
        return [self._at[key] for key in keys if key in self._at]

    def voice(self, address: Address) -> Voice | None:
        """The epoch in which a device spoke last."""
        return self._voices.get(address)

    def epochs(self, address: Address) -> Sequence[str]:
        """Epochs of a device, the one that spoke first in front."""
        return self._epochs.get(address, ())

    def lost(self, key: LaneKey) -> int:
        """Letters of a lane that will never come."""
        return self._lost.get(key, 0)

    def skip(self, gaps: Iterable[Gap]) -> None:
        """Lift marks over what devices no longer hold."""
        for gap in gaps:
            self._lost[gap.key] = self._lost.get(gap.key, 0) + gap.letters
            self._set(gap.key, gap.last)

    def stored(
        self, key: LaneKey, sequence: int, at: int, letter_id: str | None = None, spoke: float | None = None
    ) -> None:
        """A letter is in IN at `at`; those that IN never held before it are lost. An older one changes nothing.

        Args:
            key: its lane.
            sequence: its number there.
            at: IN's sequence.
            letter_id: None if IN does not say.
            spoke: when IN took it, if it came from the device itself.
        """
        mark = self.flat.get(key, 0)
        if sequence <= mark:
            return
        if sequence > mark + 1:
            self._lost[key] = self._lost.get(key, 0) + sequence - mark - 1
        self._set(key, sequence)
        self._at[key] = at
        if letter_id is not None:
            self._heads[key] = letter_id
        if spoke is not None:
            self._voices[Address(key.fleet, key.device)] = Voice(key.epoch, spoke)

    def lower(self, key: LaneKey, mark: int) -> None:
        """Forget that anything of a lane above `mark` was stored."""
        if mark < self.flat.get(key, 0):
            self._set(key, mark)
            self._at[key] = 0

    def touch(self, address: Address) -> None:
        """Have a device saved at the next turn, if there is anything to save."""
        if address in self._epochs:
            self._changed.add(address)

    def rewrite(self, addresses: Iterable[Address]) -> None:
        """Have devices saved at the next turn, even if nothing is known of them any more."""
        self._changed.update(addresses)

    def take_changed(self, sessions: Mapping[Address, str]) -> dict[Address, SavedDevice]:
        """What changed since the last call, ready to be saved."""
        changed, self._changed = self._changed, set()
        return {address: self._saved(address, sessions.get(address)) for address in changed}

    def load(self, address: Address, saved: SavedDevice) -> None:
        """Take over what was saved."""
        for epoch, lanes in saved.epochs.items():
            for lane, entry in lanes.items():
                key = LaneKey(address.fleet, address.device, epoch, lane)
                self._set(key, entry.mark)
                self._at[key] = entry.at
                self._lost[key] = entry.lost
                if entry.head is not None:
                    self._heads[key] = entry.head
        if saved.active in saved.epochs:
            self._voices[address] = Voice(saved.active, saved.spoke)
        self._changed.discard(address)

    def _set(self, key: LaneKey, mark: int) -> None:
        address = Address(key.fleet, key.device)
        epochs = self._epochs.setdefault(address, [])
        if key.epoch not in epochs:
            epochs.append(key.epoch)
            if len(epochs) > MAX_EPOCHS:
                self._forget(address, epochs.pop(0))
        self.flat[key] = mark
        # Until it is said which letter stands there.
        self._heads.pop(key, None)
        self._changed.add(address)

    def _forget(self, address: Address, epoch: str) -> None:
        for lane in ("control", "normal", "bulk"):
            key = LaneKey(address.fleet, address.device, epoch, lane)
            tables: tuple[dict[LaneKey, Any], ...] = (self.flat, self._at, self._lost, self._heads)
            for table in tables:
                table.pop(key, None)

    def _saved(self, address: Address, session: str | None) -> SavedDevice:
        epochs = {
            epoch: {
                lane: SavedLane(
                    mark=mark, at=self._at.get(key, 0), lost=self._lost.get(key, 0), head=self._heads.get(key)
                )
                for lane, mark in self.of(address, epoch).items()
                for key in (LaneKey(address.fleet, address.device, epoch, lane),)
            }
            for epoch in self._epochs.get(address, ())
        }
        voice = self._voices.get(address)
        active = {"active": voice.epoch, "spoke": voice.at} if voice is not None else {}
        return SavedDevice.model_validate({"epochs": epochs, "session": session, **active})


def base(saved: Mapping[Address, SavedDevice], point: SavedPoint | None, stream: InState) -> Base:
    """Decide what of the saved marks to believe.

    They are whole if IN still has the point's message, or has let it expire, and no mark was set behind IN's end. Else
    only marks are kept whose letters expired from IN, and the rest is read from IN anew.
    """
    ats = [lane.at for device in saved.values() for lanes in device.epochs.values() for lane in lanes.values()]
    intact = (
        point is not None
        and point.sequence <= stream.last
        and (point.sequence < stream.first or stream.id_at_point == point.message_id)
        and all(at <= stream.last for at in ats)
    )
    marks = Marks()
    for address, device in saved.items():
        marks.load(address, device if intact else _expired_only(device, stream.first))
    if intact and point is not None:
        return Base(marks, max(point.sequence + 1, stream.first), intact=True)
    # Saved marks that are no longer believed must not be found again.
    marks.rewrite(saved)
    return Base(marks, stream.first, intact=False)


def _expired_only(device: SavedDevice, first: int) -> SavedDevice:
    kept = {
        epoch: {lane: entry for lane, entry in lanes.items() if 0 < entry.at < first}
        for epoch, lanes in device.epochs.items()
    }
    epochs = {epoch: lanes for epoch, lanes in kept.items() if lanes}
    return device.model_copy(update={"epochs": epochs})
