"""The way up, over a real nats-server, real MQTT and the courier as a process."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import pytest

from schemas.envelope import Signer, parse
from schemas.registry import Enrol
from services.courier.up.chain import MESSAGE_ID, REASON
from tests.support.courier_world import counter, ids, letters, stored
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import CAPABILITIES, RawDevice, enrol

MakeDevice = Callable[..., RawDevice]


@pytest.fixture
def device(live: LivePlatform) -> Iterator[MakeDevice]:
    """Makes connected devices, and disconnects them at the end."""
    made: list[RawDevice] = []

    def make(name: str = "cam-1", *, enrolled: bool = True, bootstrap: bool = False) -> RawDevice:
        new = RawDevice(live, name, bootstrap=bootstrap)
        if enrolled:
            enrol(live, new)
        new.connect()
        made.append(new)
        return new

    yield make
    for each in made:
        each.close()


def test_letters_reach_in_once_in_order_with_their_envelope_and_are_receipted(
    live: LivePlatform, device: MakeDevice
) -> None:
    cam = device()
    live.start_service("courier")
    assert cam.greet().marks == {}
    for _ in range(50):
        cam.send()
    urgent = cam.send(lane="control")
    eventually(lambda: cam.marks() == {"normal": 50, "control": urgent}, "receipts of both lanes")
    # The first at once, then one per 250 ms: far fewer than letters.
    assert len(cam.receipts) < 20
    assert [i for i in letters(live) if ":normal:" in i] == ids(cam, "normal", 50)
    envelopes = {headers[MESSAGE_ID]: raw for _, headers, raw in stored(live)}
    assert envelopes[ids(cam, "normal", 7)[-1]] == cam.sent["normal", 7][1]
    assert counter(live, "causeway_letters_in_total") == 51
    assert counter(live, "causeway_courier_active") == 1


def test_duplicates_earn_their_receipt_again_and_early_letters_wait_for_their_predecessor(
    live: LivePlatform, device: MakeDevice
) -> None:
    cam = device()
    live.start_service("courier")
    cam.greet()
    cam.send()
    eventually(lambda: cam.marks() == {"normal": 1}, "the first receipt")
    before = len(cam.receipts)
    cam.put("event", cam.sent["normal", 1][1])
    eventually(lambda: len(cam.receipts) > before, "a receipt for the duplicate")
    late = cam.write(sequence=2)
    cam.sent["normal", 2] = ("event", late)
    cam.send()  # the third, ahead of the second
    eventually(lambda: counter(live, "causeway_letters_early_total") == 1, "the early letter")
    cam.settle()
    assert letters(live) == ids(cam, "normal", 3)
    # A floor says that what is below will never come.
    cam.put("event", cam.write(sequence=9, floor=9))
    eventually(lambda: cam.marks() == {"normal": 9}, "the mark to follow the floor")
    assert counter(live, "causeway_letters_lost_total") == 5


def test_what_is_forged_is_kept_with_its_reason_and_stops_nothing(live: LivePlatform, device: MakeDevice) -> None:
    cam, stranger, gone = device(), device("cam-2", enrolled=False), device("cam-3")
    enrol(live, gone, standing="revoked")
    live.start_service("courier")
    cam.greet()
    good = cam.write()
    flipped = good.replace(b'"sig":"', b'"sig":"AAAA', 1)[: len(good)]
    cam.put("event", cam.write(signer=Signer.generate()))
    cam.put("event", good[:40] + b"x" + good[41:])
    cam.put("event", flipped)
    cam.put("event", cam.write(platform=cam.epoch))
    cam.put("event", cam.write(lifetime_s=-1))
    cam.put("report", good)
    cam.put("event", b'{"no": "envelope"}')
    cam.put("event", b"{" + b" " * 70_000 + b"}")
    cam.put("event", cam.write(sequence=1, floor=2))
    stranger.put("event", stranger.write())
    gone.put("event", gone.write())
    expected = {
        "unknown_key",
        "wrong_platform",
        "expired",
        "wrong_kind",
        "bad_envelope",
        "oversized",
        "malformed",
        "unknown_device",
        "revoked",
    }
    eventually(
        lambda: expected <= {headers["Causeway-Reason"] for _, headers, _ in stored(live, "REJECTS")}, f"{expected}"
    )
    assert letters(live) == []
    cam.send()
    eventually(lambda: cam.marks() == {"normal": 1}, "a good letter after the bad ones")
    assert 'causeway_rejected_total{kind="event",reason="unknown_device",service="courier"} 1.0' in live.metrics(
        "courier"
    )
    # Once its record is there, the same letter is taken.
    enrol(live, stranger)
    stranger.send()
    stranger.settle()


def test_a_letter_that_fits_no_model_is_set_aside_and_does_not_block_its_lane(
    live: LivePlatform, device: MakeDevice
) -> None:
    cam = device()
    live.start_service("courier")
    cam.greet()
    cam.send("result")  # the data of an event is no result
    cam.send()
    cam.settle()
    spent = [(subject, headers[REASON]) for subject, headers, _ in stored(live) if REASON in headers]
    assert spent == [(f"cw.in.refused.{cam.fleet}.{cam.name}", "malformed")]
    assert letters(live) == ids(cam, "normal", 2)[1:]


def test_an_enrol_letter_is_verified_by_the_key_that_it_brings(live: LivePlatform, device: MakeDevice) -> None:
    new = device("fresh", enrolled=False, bootstrap=True)
    enrol(live)
    live.start_service("courier")
    assert new.greet().marks == {}
    key = base64.b64encode(new.signer.public_key).decode()
    request = Enrol(public_key=key, seal_key=key, capabilities=CAPABILITIES)
    new.put("enrol", new.write("enrol", request, lane="control", signer=Signer.generate()))
    new.send("enrol", request, lane="control")
    eventually(lambda: new.marks() == {"control": 1}, "the receipt of the enrol letter")
    [(_, _, raw)] = [entry for entry in stored(live) if entry[0].startswith("cw.in.enrol.")]
    assert parse(raw).signatures[0][0] == new.signer.keyid


def test_kill_9_in_the_middle_loses_nothing_and_stores_nothing_twice(live: LivePlatform, device: MakeDevice) -> None:
    cam = device()
    live.start_service("courier")
    cam.greet()
    for _ in range(3):
        for _ in range(300):
            cam.send()
        cam.hello()
        cam.send_again()
        eventually(lambda: counter(live, "causeway_letters_in_total") > 0, "the courier to be at it")
        live.kill("courier")
        cam.send()
        live.start_service("courier")
    cam.settle()
    assert letters(live) == ids(cam, "normal", 903)


def test_a_restart_of_nats_server_is_survived(live: LivePlatform, device: MakeDevice) -> None:
    cam = device()
    live.start_service("courier")
    cam.greet()
    for _ in range(100):
        cam.send()
    live.kill("nats-server")
    cam.subscribed.clear()
    live.start_bus()
    assert cam.subscribed.wait(20)
    for _ in range(100):
        cam.send()
    cam.settle(60)
    assert letters(live) == ids(cam, "normal", 200)
    assert live.processes["courier"].poll() is None
