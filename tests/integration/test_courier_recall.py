"""What IN lost behind the courier's back is recalled from the device; and no device fills IN alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from schemas.topics import in_of
from services.courier.up.chain import MESSAGE_ID
from services.kit.bus import Bus
from tests.support.commands import cli, cli_json
from tests.support.courier_world import counter, ids, letters, stored
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol, in_bus


@pytest.fixture
def cam(live: LivePlatform) -> Iterator[RawDevice]:
    """A connected device with five letters of two lanes each in IN; registry and courier run."""
    device = RawDevice(live, "cam-1")
    enrol(live, device)
    live.start_service("courier")
    live.start_service("registry")
    device.connect()
    device.greet()
    for _ in range(5):
        device.send()
        device.send(lane="control")
    device.settle()
    yield device
    device.close()


def lose(live: LivePlatform, device: RawDevice, *, keep: int = 0) -> None:
    """IN loses the device's letters but the first `keep` of each lane, and nobody notices."""
    doomed = {name for lane in ("normal", "control") for name in ids(device, lane, 5)[keep:]}

    async def delete(bus: Bus) -> None:
        if not keep:
            await bus.js.purge_stream("IN", subject=in_of(device.address))
            return
        for sequence in range(1, (await bus.js.stream_info("IN")).state.last_seq + 1):
            message = await bus.js.get_msg("IN", seq=sequence)
            if (message.headers or {}).get(MESSAGE_ID) in doomed:
                await bus.js.delete_msg("IN", sequence)

    in_bus(live, "courier", delete)
    assert len(letters(live)) == 2 * keep


def lane(live: LivePlatform, name: str) -> list[str]:
    return [each for each in letters(live) if f":{name}:" in each]


def test_what_in_lost_comes_again_once_and_in_order(live: LivePlatform, cam: RawDevice) -> None:
    lose(live, cam, keep=2)
    view = cli_json(live, "letters", "recall", "home/cam-1", "--all")
    assert [(x["lane"], x["mark"], x["lowered_to"], x["held_to"]) for x in view["lanes"]] == [
        ("control", 5, 2, 2),
        ("normal", 5, 2, 2),
        ("bulk", 0, 0, 0),
    ]
    eventually(lambda: {x.id for x in cam.down("recall")} == set(view["letters"]), "the recall letters")
    wanted = {(x.data.lane, x.data.from_sequence) for x in cam.down("recall")}
    assert wanted == {("control", 3), ("normal", 3), ("bulk", 1)}
    assert {x.data.epoch for x in cam.down("recall")} == {cam.epoch}
    assert cam.greet().marks == {"normal": 2, "control": 2}
    cam.settle()
    for name in ("normal", "control"):
        assert lane(live, name) == ids(cam, name, 5)
    # The lowered marks are durable: a courier that reads them finds IN and marks agreed.
    live.kill("courier")
    live.start_service("courier")
    assert cam.greet().marks == {"normal": 5, "control": 5}


def test_a_recall_outlives_the_courier_that_lowered_the_marks(live: LivePlatform, cam: RawDevice) -> None:
    lose(live, cam)
    cam.send(lane="bulk")
    cam.settle()
    cli(live, "letters", "recall", "cam-1", "--lane", "normal", "--from", "2")
    live.kill("courier")
    live.start_service("courier")
    assert cam.greet().marks == {"normal": 1, "control": 5, "bulk": 1}
    cam.settle()
    assert lane(live, "normal") == ids(cam, "normal", 5)[1:]
    assert lane(live, "control") == []


def test_what_in_holds_is_not_taken_twice_unless_the_operator_insists(live: LivePlatform, cam: RawDevice) -> None:
    said = cli(live, "letters", "recall", "cam-1", "--all")
    assert "none was lowered" in said
    eventually(lambda: len({x.id for x in cam.down("recall")}) == 3, "the recall letters all the same")
    for (_, _), (kind, raw) in sorted(cam.sent.items()):
        cam.put(kind, raw)
    cam.send()
    cam.settle()
    assert lane(live, "normal") == ids(cam, "normal", 6)

    [view] = cli_json(live, "letters", "recall", "cam-1", "--lane", "normal", "--from", "5", "--force")["lanes"]
    assert (view["lowered_to"], view["held_to"]) == (4, 6)
    assert cam.greet().marks["normal"] == 4
    cam.settle()
    assert lane(live, "normal") == ids(cam, "normal", 6) + ids(cam, "normal", 6)[4:]
    # Twice in IN, with one effect: services know a letter by its id.
    names = [headers["Causeway-Letter-Id"] for subject, headers, _ in stored(live) if subject.startswith("cw.in.event")]
    assert len(set(names)) == len(names) - 2


def test_a_recall_of_a_device_that_never_spoke_is_refused(live: LivePlatform, cam: RawDevice) -> None:
    assert "nothing of that name" in cli(live, "letters", "recall", "cam-9", "--all", code=3)
    silent = RawDevice(live, "cam-2")
    enrol(live, silent)
    said = eventually(
        lambda: (
            "no letter of it ever came" in (text := cli(live, "letters", "recall", "cam-2", "--all", code=3)) and text
        ),
        "the registry to know the device",
    )
    assert "lower the marks of home/cam-2" in said


def test_a_device_that_floods_keeps_no_other_waiting_and_loses_nothing(
    live: LivePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUSEWAY_COURIER_LETTERS_PER_MINUTE", "1200")
    flood, quiet = RawDevice(live, "flood"), RawDevice(live, "quiet")
    enrol(live, flood, quiet)
    live.start_service("courier")
    for device in (flood, quiet):
        device.connect()
        device.greet()
    for _ in range(5):
        for _ in range(400):
            flood.send()
        quiet.send()
    begun = time.monotonic()
    quiet.settle()
    assert time.monotonic() - begun < 5
    assert counter(live, "causeway_letters_paced_total") >= 1_600
    taken = [name for name in letters(live) if ":flood:" in name]
    assert taken == ids(flood, "normal", len(taken))
    assert 0 < len(taken) <= 400
    # What was left is taken when the device sends it again, a window at a time.
    again = [0.0]

    def more() -> bool:
        if time.monotonic() >= again[0]:
            flood.hello()
            flood.send_again()
            again[0] = time.monotonic() + 1
        return flood.marks().get("normal", 0) > len(taken) + 20

    eventually(more, "two windows more")
    for device in (flood, quiet):
        device.close()
