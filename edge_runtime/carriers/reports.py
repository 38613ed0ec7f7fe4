"""What an exchange with a folder came to."""

from __future__ import annotations

from dataclasses import dataclass, field


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
        left: files that were not looked at, since there were too many.
        reasons: what is wrong with the first of the refused files.
    """

    arrived: int = 0
    complete: int = 0
    carried: int = 0
    pieces: int = 0
    piece_bytes: int = 0
    refused: int = 0
    no_room: int = 0
    left: int = 0
    reasons: list[str] = field(default_factory=list)
