"""The courier dies at each of its words to the bus: every letter stays once and in order, no receipt was too high.

A sample of the points by default; all of them, before and after the server has the word, with `LONG_TESTS=1`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest
from nats.js.errors import KeyDeletedError, KeyNotFoundError

from schemas.registry import Twin
from services.courier.lease import KEY
from services.courier.up.ordering import parse_message_id
from services.kit.bus import Bus
from services.kit.streams import ensure_owned
from tests.support.courier_world import ids, letters, post, stored
from tests.support.crashing_courier import DEAD, Couriers
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol, in_bus

LONG = bool(os.environ.get("LONG_TESTS"))
SAMPLE = 12
"""Points of the short run."""
PAUSE_S = 0.1


@pytest.fixture
def cam(live: LivePlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawDevice]:
    """A connected device. Marks are saved after every few letters, so that saving them is among the points."""
    monkeypatch.setenv("CAUSEWAY_COURIER_SNAPSHOT_LETTERS", "2")
    device = RawDevice(live, "cam-1")
    enrol(live, device)
    in_bus(live, "courier", lambda bus: ensure_owned(bus.js, "courier"))
    yield device
    device.close()


@pytest.fixture
def couriers(live: LivePlatform, cam: RawDevice) -> Iterator[Couriers]:
    made = Couriers(live)
    yield made
    made.stop(signal.SIGKILL)
    made.close()


def converse(live: LivePlatform, cam: RawDevice, couriers: Couriers) -> bool:
    """Letters of two lanes up, one down that is got. False if the courier died on the way."""
    for _ in range(3):
        cam.send()
    for _ in range(2):
        cam.send(lane="control")
    [down] = post(live, cam, "config", Twin(), slot="-")
    again = [0.0]

    def done() -> bool:
        if time.monotonic() >= again[0]:
            cam.hello()
            cam.send_again()
            again[0] = time.monotonic() + PAUSE_S
        taken = [letter.id for letter in cam.down("config")]
        if down in taken:
            cam.got(down)
        return cam.marks() == cam.issued() and down in taken and not stored(live, "OUT")

    return eventually(lambda: "done" if done() else "" if couriers.alive else "dead", "the end of it", 60) == "done"


def held(live: LivePlatform) -> dict[str, int]:
    """Highest letter in IN per lane."""
    highest: dict[str, int] = {}
    for name in letters(live):
        found = parse_message_id(name)
        assert found is not None
        highest[found[0].lane] = max(highest.get(found[0].lane, 0), found[1])
    return highest


def end_lease(live: LivePlatform) -> None:
    """As its time to live does, three seconds later."""

    async def delete(bus: Bus) -> None:
        leader = await (await bus.bucket("leader")).get(KEY)
        await (await bus.bucket("leader")).delete(KEY, last=leader.revision)

    try:
        in_bus(live, "courier", delete)
    except (KeyNotFoundError, KeyDeletedError):
        return


def emptied(live: LivePlatform, cam: RawDevice, held: tuple[str, ...], what: str) -> None:
    """Wait for an empty mailbox: a `got` that nobody heard is made good by what the next hello names, as devices do."""
    again = [0.0]

    def done() -> bool:
        if time.monotonic() >= again[0]:
            cam.hello(held=held)
            again[0] = time.monotonic() + 5 * PAUSE_S
        return not stored(live, "OUT")

    eventually(done, what)


def points(total: int) -> Iterator[tuple[int, bool]]:
    """Which publish to die at, and whether the server still gets it."""
    if LONG:
        yield from ((at, sent) for at in range(1, total + 1) for sent in (False, True))
    else:
        yield from ((1 + n * (total - 1) // (SAMPLE - 1), bool(n % 2)) for n in range(SAMPLE))


@pytest.mark.timeout(3_600 if LONG else 180)
def test_wherever_the_courier_dies_nothing_is_lost_or_stored_twice(
    live: LivePlatform, cam: RawDevice, couriers: Couriers, capsys: pytest.CaptureFixture[str]
) -> None:
    cam.connect()
    couriers.start()
    assert converse(live, cam, couriers)
    total = int(couriers.count.read_text())
    assert couriers.stop(signal.SIGTERM) == 0
    deaths = 0
    for at, sent in points(total):
        couriers.start(at, sent=sent)
        whole = converse(live, cam, couriers)
        died = couriers.stop(signal.SIGKILL)
        deaths += died == DEAD
        # A receipt is a promise: whatever any of them said is in IN.
        promised: dict[str, int] = {}
        for receipt in cam.receipts:
            promised |= {lane: max(mark, promised.get(lane, 0)) for lane, mark in receipt.marks.items()}
        there = held(live)
        assert all(mark <= there.get(lane, 0) for lane, mark in promised.items()), (at, sent, promised, there)
        end_lease(live)
        if not whole:
            waiting = {headers["Causeway-Letter-Id"] for _, headers, _ in stored(live, "OUT")}
            taken = {letter.id for letter in cam.down("config")}
            couriers.start()
            cam.settle()
            # The letter down waits in OUT until the device said that it holds it.
            for letter_id in waiting - taken:
                eventually(lambda i=letter_id: i in {x.id for x in cam.down("config")}, f"the letter down, point {at}")
            if waiting:
                cam.got(*waiting)
            emptied(live, cam, tuple(waiting), f"the mailbox to be empty, point {at}")
            assert couriers.stop(signal.SIGTERM) == 0, (at, sent)
        issued, names = cam.issued(), letters(live)
        for lane, count in issued.items():
            assert [name for name in names if f":{lane}:" in name] == ids(cam, lane, count), (at, sent)
    with capsys.disabled():
        sys.stdout.write(f"\ncourier killed {deaths} times, at {total} publishes\n")
    assert deaths >= (SAMPLE // 2 if not LONG else total)
