"""Two bodies of one device: both are put into quarantine with proof, and an operator's release lets one go on."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from ulid import ULID

from schemas.registry import Twin
from services.kit.api.registry import QuarantineRequest
from services.kit.errors import PlatformError
from tests.support.commands import cli
from tests.support.courier_world import counter, ids, letters, post, stored
from tests.support.edge import ask, show
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice, enrol


@pytest.fixture
def first(live: LivePlatform) -> Iterator[RawDevice]:
    """A connected device with two letters in IN; registry and courier run."""
    cam = RawDevice(live, "cam-1")
    enrol(live, cam)
    live.start_service("courier")
    live.start_service("registry")
    cam.connect()
    cam.greet()
    for _ in range(2):
        cam.send()
    cam.settle()
    yield cam
    cam.close()


@pytest.fixture
def second(live: LivePlatform, first: RawDevice) -> Iterator[RawDevice]:
    """Its copied disk, connected too."""
    copy = RawDevice(live, first.name, signer=first.signer, epoch=first.epoch, sent=dict(first.sent))
    copy.connect()
    copy.greet()
    yield copy
    copy.close()


def quarantined(live: LivePlatform, device: RawDevice) -> dict[str, Any]:
    view = eventually(
        lambda: (seen := show(live, device.address))["standing"] == "quarantined" and seen, "the quarantine"
    )
    return view["quarantine"]


def events(live: LivePlatform, name: str) -> list[dict[str, Any]]:
    return [json.loads(body) for subject, _, body in stored(live, "EVENTS", "registry") if subject.endswith(f".{name}")]


def refused(live: LivePlatform, reason: str) -> int:
    return sum(headers["Causeway-Reason"] == reason for _, headers, _ in stored(live, "REJECTS"))


def test_one_number_twice_stops_both_until_an_operator_releases_the_one_that_is_left(
    live: LivePlatform, first: RawDevice, second: RawDevice
) -> None:
    first.send()
    first.settle()
    second.send()
    why = quarantined(live, first)
    assert why["reason"] == "two_letters"
    assert "number 3 of lane normal" in why["message"]
    assert len(set(why["letters"])) == 2
    assert [fact["quarantine"] for fact in events(live, "device-quarantined")] == [why]

    # They go on working; what they write stays in their outboxes, and their mailbox rests.
    first.send()
    eventually(lambda: refused(live, "quarantined") > 0, "a letter to be refused")
    first.greet()
    assert first.marks() == {"normal": 3}
    assert letters(live) == ids(first, "normal", 3)
    [waiting] = post(live, first, "config", Twin(), slot="-")
    first.got(waiting)
    assert "is in quarantine: two letters have number 3" in cli(live, "device", "list")
    assert "two letters have number 3" in cli(live, "device", "show", "cam-1")

    second.close()
    assert first.down("config") == []
    cli(live, "device", "release", "cam-1", "--yes")
    first.settle()
    assert letters(live) == ids(first, "normal", 4)
    eventually(lambda: {x.id for x in first.down("config")} == {waiting}, "the letter that rested")
    assert show(live, first.address)["standing"] == "enrolled"
    assert len(events(live, "device-released")) == 1
    assert counter(live, "causeway_clone_suspicions_total") == 1


def test_an_epoch_that_was_left_goes_on_and_after_a_release_it_may(
    live: LivePlatform, first: RawDevice, second: RawDevice
) -> None:
    # As the runtime does when it finds letters at the platform that its disk never issued.
    second.epoch, second.sent = str(ULID()), {}
    second.send()
    second.settle()
    first.send()
    why = quarantined(live, first)
    assert (why["reason"], why["epochs"]) == ("old_epoch", [first.epoch, second.epoch])
    second.send()
    second.close()
    cli(live, "device", "release", "cam-1", "--yes")
    first.settle()
    assert [name for name in letters(live) if first.epoch in name] == ids(first, "normal", 3)
    # The other one was not gone after all.
    second.connect()
    second.send_again()
    assert quarantined(live, first)["epochs"] == [second.epoch, first.epoch]
    assert len(letters(live)) == 4


def test_a_courier_that_took_over_still_knows_the_letter_at_the_mark(
    live: LivePlatform, first: RawDevice, second: RawDevice
) -> None:
    first.send()
    first.settle()
    live.kill("courier")
    live.start_service("courier")
    second.greet()
    second.send()
    assert quarantined(live, first)["reason"] == "two_letters"


def test_a_new_installation_late_copies_and_a_restored_image_are_no_clones(
    live: LivePlatform, first: RawDevice
) -> None:
    old = first.epoch
    copies = [raw for _, (_, raw) in sorted(first.sent.items())]
    # Signed anew with a later expiry, but the same letter.
    for raw in copies:
        first.put("event", raw)
    # The disk is emptied, or an older image restored: either way a new epoch, and the old one stays silent.
    for _ in range(2):
        first.epoch, first.sent = str(ULID()), {}
        first.greet()
        for _ in range(3):
            first.send()
        for raw in copies:
            first.put("event", raw)
        first.settle()
    live.kill("courier")
    live.start_service("courier")
    first.send()
    first.settle()
    assert show(live, first.address)["standing"] == "enrolled"
    assert counter(live, "causeway_clone_suspicions_total") == 0
    assert len(letters(live)) == 9
    assert sum(old in name for name in letters(live)) == 2


def test_the_registry_judges_by_itself(live: LivePlatform, first: RawDevice) -> None:
    first.send()
    first.settle()
    forged = first.write(sequence=3, signer=RawDevice(live, "cam-1").signer)

    def request(*raw: bytes, proof: str = "two_letters", epochs: tuple[str, ...] = ()) -> QuarantineRequest:
        return QuarantineRequest.model_validate(
            {
                "fleet": "home",
                "device": "cam-1",
                "proof": proof,
                "letters": [base64.b64encode(each).decode() for each in raw],
                "epochs": list(epochs) or [first.epoch],
            }
        )

    genuine = first.sent["normal", 3][1]
    for wrong in (
        request(forged, genuine),
        request(genuine, genuine),
        request(genuine),
        request(genuine, first.sent["normal", 2][1]),
        request(genuine, proof="old_epoch"),
        request(genuine, first.sent["normal", 2][1], proof="old_epoch", epochs=(first.epoch, str(ULID()))),
    ):
        with pytest.raises(PlatformError, match="into quarantine"):
            ask(live, "registry", "quarantine", wrong)
    assert show(live, first.address)["standing"] == "enrolled"
