"""Rejected letters, seen by operators and replayed once what was wrong is mended."""

from __future__ import annotations

import json
import sys
from typing import Any

from ulid import ULID

from schemas.topics import Channel, Topic, in_subject
from services.courier.up.chain import MESSAGE_ID, WAY
from tests.support.commands import cli, cli_json
from tests.support.courier_world import counter, ids, letters, speaking, stored
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol

OLDER_COURIER = """
import schemas.letters as letters
letters.UP_DATA["event"] = letters.UP_DATA["report"]
from services.courier.app import wire
from services.kit.service import main
main("courier", wire)
"""
"""A courier of a version that knows another form of `event`."""


def rejected(live: LivePlatform, count: int, *options: str) -> list[dict[str, Any]]:
    """What the command lists, once there are so many."""
    return eventually(
        lambda: len(found := cli_json(live, "letters", "rejected", *options)) >= count and found, f"{count} rejects"
    )


def outcomes(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["outcome"] for answer in answers]


def announced(live: LivePlatform) -> list[str]:
    """Messages of `device-event`, in order."""
    found = [body for subject, _, body in stored(live, "EVENTS", "registry") if subject.endswith(".device-event")]
    return [json.loads(body)["message"] for body in found]


def test_letters_of_a_device_whose_record_came_late_are_replayed_in_their_order(live: LivePlatform) -> None:
    late, other = RawDevice(live, "cam-2"), RawDevice(live, "cam-3")
    enrol(live)
    live.start_service("courier")
    for device in (late, other):
        device.connect()
        for _ in range(3):
            device.send()
        device.put("event", b'{"no": "envelope"}')
        device.close()
    of_late = ("--device", "home/cam-2", "--reason", "unknown_device")
    found = rejected(live, 3, *of_late, "--since", "1h")
    rejected(live, 8)
    assert [(x["kind"], x["service"], x["device"], x["channel"]) for x in found] == [
        ("event", "courier", "cam-2", "letter")
    ] * 3
    shown = cli_json(live, "letters", "show", str(found[1]["id"]))
    assert (shown["letter"], shown["body"]["data"]["message"]) == (found[1]["letter"], "normal 2")
    assert shown["signed_by"] == [late.signer.keyid]
    text = cli(live, "letters", "show", str(found[1]["id"]))
    assert "is not enrolled" in text
    assert '"sequence": 2' in text
    assert cli_json(live, "letters", "rejected", "--since", "2999-01-01") == []
    assert "there is none of this number" in cli(live, "letters", "show", "4711", code=3)

    # Nothing is mended yet, and of what never was a letter nothing can be.
    assert outcomes(cli_json(live, "letters", "replay", "--all", *of_late, code=4)) == ["refused"] * 3
    enrol(live, late)
    second, first, third = (str(found[n]["id"]) for n in (1, 0, 2))
    # Out of order the second is still early.
    assert outcomes(cli_json(live, "letters", "replay", second, first, third, code=4)) == ["early", "stored", "early"]
    assert outcomes(cli_json(live, "letters", "replay", "--all", *of_late)) == ["known", "stored", "stored"]
    assert outcomes(cli_json(live, "letters", "replay", "--all", *of_late)) == ["known"] * 3
    assert letters(live) == ids(late, "normal", 3)
    garbage = cli_json(live, "letters", "replay", "--all", "--device", "cam-3", code=4)
    assert [answer["reason"] for answer in garbage] == ["unknown_device"] * 3 + ["bad_envelope"]


def test_a_letter_whose_number_was_spent_is_handed_on_once_the_platform_understands_it(live: LivePlatform) -> None:
    cam = RawDevice(live, "cam-1")
    enrol(live, cam)
    live._spawn("courier", [sys.executable, "-c", OLDER_COURIER, "--state", str(live.state.root)])
    live.start_service("registry")
    cam.connect()
    cam.greet()
    for _ in range(2):
        cam.send()
    cam.settle()
    assert letters(live) == []
    found = rejected(live, 2, "--reason", "malformed")
    chosen = [str(x["id"]) for x in found]
    assert outcomes(cli_json(live, "letters", "replay", *chosen, code=4)) == ["refused"] * 2

    live.kill("courier")
    live.start_service("courier")
    cam.send()
    cam.settle()
    assert outcomes(cli_json(live, "letters", "replay", *chosen)) == ["handed"] * 2
    assert outcomes(cli_json(live, "letters", "replay", *chosen)) == ["known"] * 2
    eventually(lambda: sorted(announced(live)) == ["normal 1", "normal 2", "normal 3"], "each to have its effect")
    again = [headers for subject, headers, _ in stored(live) if headers.get(WAY) == "replayed"]
    assert len(again) == 2
    assert all(headers[MESSAGE_ID].startswith("replay:") for headers in again)
    # A replayed letter moves no mark, also when IN is read anew.
    live.kill("courier")
    live.start_service("courier")
    assert cam.greet().marks == {"normal": 3}
    cam.close()


def test_what_a_service_refused_is_given_to_it_again_with_one_effect(live: LivePlatform) -> None:
    cam = speaking(live)
    enrol(live, cam, standing="revoked")
    live.start_service("registry")
    [found] = rejected(live, 1)
    assert (found["service"], found["reason"], found["subject"]) == (
        "registry",
        "unknown_key",
        in_subject("event", cam.address),
    )
    # Beside the registry, which would write its own record again over this one.
    live.kill("registry")
    enrol(live, cam)
    live.start_service("registry")
    for _ in range(2):
        assert outcomes(cli_json(live, "letters", "replay", str(found["id"]))) == ["handed"]
    eventually(lambda: len([s for s, h, _ in stored(live) if h.get(WAY) == "replayed"]) == 2, "both in IN")
    cam.send()
    cam.settle()
    eventually(lambda: announced(live)[-1:] == ["normal 2"], "the next letter's effect")
    assert announced(live) == ["normal 1", "normal 2"]
    cam.close()


def test_state_is_not_replayed_and_options_that_contradict_are_refused(live: LivePlatform) -> None:
    cam = RawDevice(live, "cam-1")
    enrol(live, cam)
    live.start_service("courier")
    cam.connect()
    cam.publish(Topic(cam.address, Channel.STATE, "hello"), b"{}")
    [found] = rejected(live, 1)
    assert (found["channel"], found["kind"]) == ("state", "hello")
    [answer] = cli_json(live, "letters", "replay", str(found["id"]), code=4)
    assert answer["reason"] == "not_a_letter"
    assert cli_json(live, "letters", "replay", "--all") == []
    for wrong in (["replay"], ["replay", "1", "--all"], ["rejected", "--since", "soon"], ["recall", "cam-1"]):
        cli(live, "letters", *wrong, code=2)
    cam.close()


def test_what_can_be_read_and_not_written_again_is_listed_and_shown_as_it_came(live: LivePlatform) -> None:
    cam = RawDevice(live, "cam-1")
    enrol(live, cam)
    live.start_service("courier")
    cam.connect()
    deep = b"[" * 300 + b"]" * 300
    sent = [b'{"id":"\\ud800"}', b'{"id":"1","x":"\\ud800"}', deep, b"\x1b[2J", b"\xff"]
    for raw in sent:
        cam.put("event", raw)
    assert [each["letter"] for each in rejected(live, len(sent))] == [None] * len(sent)
    for number, raw in enumerate(sent, 1):
        shown = cli_json(live, "letters", "show", str(number))
        assert (shown["body"], shown["raw"]) == (None, raw.decode(errors="backslashreplace"))
        # An escape sequence would be obeyed by the operator's terminal.
        assert shown["raw"].replace("\x1b", r"\x1b") in cli(live, "letters", "show", str(number))
    cam.close()


def test_a_letter_of_an_epoch_that_was_left_is_replayed_without_a_suspicion_of_a_clone(live: LivePlatform) -> None:
    cam = speaking(live)
    enrol(live, cam, standing="revoked")
    cam.send()
    [found] = rejected(live, 1, "--reason", "revoked")
    enrol(live, cam)
    old = ids(cam, "normal", 2)
    cam.epoch, cam.sent = str(ULID()), {}
    cam.greet()
    cam.send()
    cam.settle()
    # It proves nothing that an operator brings an old letter: the device itself said it in its time.
    assert outcomes(cli_json(live, "letters", "replay", str(found["id"]))) == ["stored"]
    cam.send()
    cam.settle()
    assert letters(live) == [old[0], *ids(cam, "normal", 1), old[1], ids(cam, "normal", 2)[1]]
    assert counter(live, "causeway_clone_suspicions_total") == 0
    cam.close()
