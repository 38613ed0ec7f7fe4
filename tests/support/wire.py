"""Cables between network namespaces that are slow, far and lossy: a process that carries Ethernet frames between TAPs.

The kernel's netem is not in every kernel, and its losses cannot be repeated; these come from a seed. One process serves
all cables of a `netns.Net`. It takes one JSON command per line on stdin, answers each with a line, and its cables are
gone with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
FRAME_BYTES = 1 << 16
QUEUE_BYTES = 64 * 1_024
"""What a modem buffers; more is dropped, as everywhere."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a cable is: both directions alike.

    Attributes:
        rate_kbit: of each direction; None is as fast as it goes.
        delay_ms: one way.
        jitter_ms: added to the delay, uniformly; frames do not overtake each other.
        loss: share of frames that are lost, each for itself.
        queue_bytes: of each direction; what does not fit is dropped.
        seed: of losses and jitter.
    """

    rate_kbit: float | None = None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    queue_bytes: int = QUEUE_BYTES
    seed: int = 1

    def write(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass
class Direction:
    """Frames on their way from one end to the other."""

    write: Callable[[bytes], None]
    queued: int = 0
    free_at: float = 0.0
    last_at: float = 0.0


@dataclass
class Cable:
    """Two ends, and what lies between them."""

    shape: Shape = Shape()
    up: bool = True
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    directions: list[Direction] = field(default_factory=list)
    carried: int = 0
    lost: int = 0
    full: int = 0

    def reshape(self, shape: Shape) -> None:
        """From now on like this."""
        if shape.seed != self.shape.seed or not self.carried:
            self.chance = random.Random(shape.seed)
        self.shape = shape

    def accept(self, direction: Direction, size: int, now: float) -> float | None:
        """When a frame of `size` bytes arrives at the other end; None if it never does."""
        shape = self.shape
        if not self.up:
            return None
        if self.chance.random() < shape.loss:
            self.lost += 1
            return None
        if direction.queued + size > shape.queue_bytes:
            self.full += 1
            return None
        took = 0.0 if shape.rate_kbit is None else size * 8 / (shape.rate_kbit * 1_000)
        direction.free_at = max(now, direction.free_at) + took
        delay = (shape.delay_ms + self.chance.uniform(0, shape.jitter_ms)) / 1_000
        direction.last_at = max(direction.last_at, direction.free_at + delay)
        self.carried += 1
        return direction.last_at


class Exchange:
    """Carries frames and obeys commands until stdin ends."""

    def __init__(self) -> None:
        self._cables: dict[str, Cable] = {}
        self._ways: dict[int, tuple[Cable, Direction]] = {}
        self._due: list[tuple[float, int, Cable, Direction, bytes]] = []
        self._count = 0
        self._selector = selectors.DefaultSelector()
        self._input = b""

    def run(self) -> None:
        """Serve."""
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ)
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for key, _ in self._selector.select(wait):
                if key.fd == 0:
                    if not self._command():
                        return
                else:
                    self._read(key.fd)
            self._deliver()

    def _read(self, tap: int) -> None:
        cable, direction = self._ways[tap]
        for _ in range(64):
            try:
                frame = os.read(tap, FRAME_BYTES)
            except BlockingIOError:
                return
            at = cable.accept(direction, len(frame), time.monotonic())
            if at is not None:
                direction.queued += len(frame)
                self._count += 1
                heapq.heappush(self._due, (at, self._count, cable, direction, frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, cable, direction, frame = heapq.heappop(self._due)
            direction.queued -= len(frame)
            if cable.up:
                direction.write(frame)

    def _command(self) -> bool:
        try:
            data = os.read(0, FRAME_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            print(json.dumps(self._obey(json.loads(line))), flush=True)  # noqa: T201
        return True

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        name = command["cable"]
        if command["do"] == "add":
            ends = [open_tap(*end) for end in command["ends"]]
            cable = self._cables[name] = Cable()
            for tap, other in (ends, ends[::-1]):
                direction = Direction(_writer(other))
                cable.directions.append(direction)
                self._ways[tap] = (cable, direction)
                self._selector.register(tap, selectors.EVENT_READ)
        cable = self._cables[name]
        if command["do"] == "shape":
            cable.reshape(Shape(**command["shape"]))
        elif command["do"] in {"cut", "restore"}:
            cable.up = command["do"] == "restore"
        return {"carried": cable.carried, "lost": cable.lost, "full": cable.full}


def open_tap(namespace: str, interface: str) -> int:
    """A TAP interface inside a namespace (its file; "" is the present one), gone once it is closed."""
    library = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        if namespace:
            target = os.open(namespace, os.O_RDONLY)
            _enter(library, target)
            os.close(target)
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", interface.encode(), IFF_TAP | IFF_NO_PI))
        return tap
    finally:
        _enter(library, home)
        os.close(home)


def _enter(library: ctypes.CDLL, namespace: int) -> None:
    if library.setns(namespace, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "setns")


def _writer(tap: int) -> Callable[[bytes], None]:
    def write(frame: bytes) -> None:
        try:
            os.write(tap, frame)
        except (BlockingIOError, OSError):
            # The other end is down or full: a cable says nothing about that.
            return

    return write


if __name__ == "__main__":
    sys.exit(Exchange().run())
