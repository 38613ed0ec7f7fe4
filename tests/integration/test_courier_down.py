"""The way down: mailboxes, over a real nats-server and real MQTT."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from ulid import ULID

from schemas.registry import Recall, Twin
from tests.support.courier_world import counter, post, stored
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol


@pytest.fixture
def cam(live: LivePlatform) -> Iterator[RawDevice]:
    """An enrolled device, connected by the test."""
    new = RawDevice(live, "cam-1")
    enrol(live, new)
    yield new
    new.close()


def recall(number: int = 1) -> Recall:
    return Recall.model_validate({"epoch": str(ULID()), "lane": "normal", "from": number})


def taken(device: RawDevice, kind: str = "recall") -> Callable[[], list[str]]:
    return lambda: [letter.id for letter in device.down(kind)]


def test_a_letter_comes_at_once_and_again_until_it_is_got(live: LivePlatform, cam: RawDevice) -> None:
    live.start_service("courier")
    cam.connect()
    cam.greet()
    [letter] = post(live, cam, "recall", recall())
    eventually(lambda: taken(cam)() == [letter] * 2, "the letter and its repetition")
    cam.got(letter)
    eventually(lambda: stored(live, "OUT") == [], "the mailbox to be empty")
    assert counter(live, "causeway_letters_got_total") == 1
    before = len(cam.letters)
    cam.greet()
    assert len(cam.letters) == before


def test_letters_wait_for_their_device_and_the_newest_of_a_slot_wins(live: LivePlatform, cam: RawDevice) -> None:
    live.start_service("courier")
    first, second = post(live, cam, "config", Twin(heartbeat_s=10), Twin(heartbeat_s=20), slot="-")
    waiting = post(live, cam, "recall", *(recall(n) for n in range(1, 41)))
    cam.connect()
    cam.greet()
    eventually(lambda: set(taken(cam, "config")()) == {second}, "the newer configuration")
    # A late `got` of the replaced letter, and one by somebody else, change nothing.
    other = RawDevice(live, "cam-2")
    other.connect()
    other.got(second)
    other.close()
    cam.got(first)

    def confirmed() -> bool:
        for start in range(0, len(known := list(dict.fromkeys(taken(cam)()))), 16):
            cam.got(*known[start : start + 16])
        return set(known) == set(waiting)

    eventually(confirmed, "all forty, a window at a time")
    assert list(dict.fromkeys(taken(cam)())) == waiting
    eventually(lambda: len(stored(live, "OUT")) == 1, "only the configuration to be left")
    cam.greet()
    # Said in hello instead of in `got`.
    cam.hello(held=(second,))
    eventually(lambda: stored(live, "OUT") == [], "the mailbox to be empty")


def test_mailboxes_survive_kill_9_and_a_restart_of_the_server(live: LivePlatform, cam: RawDevice) -> None:
    live.start_service("courier")
    cam.connect()
    cam.greet()
    live.kill("courier")
    [early] = post(live, cam, "recall", recall())
    live.start_service("courier")
    # The device stays connected and says nothing, and the letter comes all the same.
    eventually(lambda: early in taken(cam)(), "the letter posted while no courier ran")
    cam.got(early)
    eventually(lambda: stored(live, "OUT") == [], "the mailbox to be empty")
    live.kill("nats-server")
    cam.subscribed.clear()
    live.start_bus()
    assert cam.subscribed.wait(20)
    [late] = post(live, cam, "recall", recall())
    eventually(lambda: late in taken(cam)(), "the letter posted after the restart")


def test_an_expired_letter_is_dropped_and_counted(live: LivePlatform, cam: RawDevice) -> None:
    live.start_service("courier")
    post(live, cam, "recall", recall(), lifetime_s=1)
    eventually(lambda: counter(live, "causeway_mailbox_dropped_total") == 1, "the expiry")
    eventually(lambda: stored(live, "OUT") == [], "the mailbox to be empty")
