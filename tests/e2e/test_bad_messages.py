"""Bad messages of every kind against real services: who sees it, and that nothing else stops.

What an operator does wrong at the command line is in `test_platform_on_one_machine.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from schemas.envelope import parse, seal
from schemas.registry import EventReport
from schemas.topics import Channel, Topic
from tests.support.platform import LivePlatform, eventually
from tests.support.raw_device import RawDevice
from tests.support.refusals import count, good_ones_still_work, kept, logged
from tests.support.registry import Link, Thing, admit

KB = 1 << 10


@dataclass(frozen=True)
class Case:
    """One message that is refused."""

    channel: Channel
    kind: str
    write: Callable[[RawDevice], bytes]
    service: str
    reason: str
    label: str | None = None
    """Kind in the counter, where it is not the message's own: what a sender made up never becomes a label."""
    known: bool = True


def of_version_2(cam: RawDevice) -> bytes:
    body = parse(cam.write()).body
    assert b"causeway.event.v1" in body
    raw = seal(body.replace(b"causeway.event.v1", b"causeway.event.v2"), cam.signer)
    # Its number is spent: a device that gave it to another letter would be taken for two.
    cam.sent["normal", cam.issued().get("normal", 0) + 1] = ("event", raw)
    return raw


def heartbeat(cam: RawDevice, version: int = 1) -> bytes:
    beat = {"session": cam.session, "uptime_s": 1}
    source = cam.address.source
    event = {"specversion": "1.0", "id": cam.session, "source": source, "type": f"causeway.heartbeat.v{version}"}
    return json.dumps(event | {"time": "2030-01-01T00:00:00Z", "data": beat}).encode()


def blank(size: int) -> Callable[[RawDevice], bytes]:
    return lambda _: b" " * size


LETTER, STATE, PARCEL = Channel.LETTER, Channel.STATE, Channel.PARCEL
CASES = {
    "letter of an unknown device": Case(LETTER, "event", lambda d: d.write(), "courier", "unknown_device", known=False),
    "heartbeat of an unknown device": Case(STATE, "heartbeat", heartbeat, "registry", "unknown_device", known=False),
    "want of an unknown device": Case(
        PARCEL, "want", lambda _: json.dumps({"recipe": "ab" * 32}).encode(), "depot", "not_enrolled", known=False
    ),
    "oversized letter": Case(LETTER, "event", blank(70 * KB), "courier", "oversized"),
    "oversized hello": Case(STATE, "hello", blank(5 * KB), "courier", "oversized"),
    "oversized heartbeat": Case(STATE, "heartbeat", blank(5 * KB), "registry", "oversized"),
    "oversized want": Case(PARCEL, "want", blank(20 * KB), "depot", "oversized"),
    "hello beyond max_payload": Case(STATE, "hello", blank(6 << 20), "courier", "oversized"),
    "piece beyond max_payload": Case(PARCEL, "piece", blank(2 << 20), "depot", "wrong_kind", label="unknown"),
    "malformed letter": Case(LETTER, "event", lambda _: b"{}", "courier", "bad_envelope"),
    "letter whose data does not fit": Case(
        LETTER, "result", lambda d: seal(parse(d.write()).body, d.signer), "courier", "wrong_kind"
    ),
    "malformed heartbeat": Case(STATE, "heartbeat", lambda _: b"\xff{", "registry", "malformed"),
    "malformed want": Case(PARCEL, "want", lambda _: b'{"pieces":["xyz"]}', "depot", "malformed"),
    "letter of another version": Case(LETTER, "event", of_version_2, "courier", "unsupported_version"),
    "heartbeat of another version": Case(
        STATE, "heartbeat", lambda d: heartbeat(d, version=2), "registry", "unsupported_version"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_bad_message_is_counted_logged_and_kept_with_its_reason_and_a_good_one_follows(
    world: LivePlatform, cam: RawDevice, stranger: RawDevice, case: Case
) -> None:
    device = cam if case.known else stranger
    kind = case.label or case.kind
    before = count(world, case.service, kind, case.reason)
    raw = case.write(device)
    device.publish(Topic(device.address, case.channel, case.kind), raw)
    eventually(lambda: count(world, case.service, kind, case.reason) > before, "the counter")
    assert logged(world, case.service, device.name, case.reason)
    assert raw[: 64 * KB] in kept(world, case.service, device.name, case.reason)
    good_ones_still_work(cam)


def test_a_kind_that_was_made_up_is_refused_and_does_not_become_a_label(world: LivePlatform, cam: RawDevice) -> None:
    assert cam._client is not None
    for channel, service in ((LETTER, "courier"), (STATE, "registry")):
        cam._client.publish(f"cw/1/home/{cam.name}/{channel}/made-up", b"{}")
        eventually(lambda: count(world, service, "unknown", "bad_topic"), "the counter")  # noqa: B023
        assert logged(world, service, cam.name, "bad_topic")
        assert "made-up" not in world.metrics(service)
        assert kept(world, service, cam.name, "bad_topic")
    good_ones_still_work(cam)


def test_letters_too_large_for_the_bus_reach_nobody_and_cut_nobody_off(world: LivePlatform, cam: RawDevice) -> None:
    """nats-server 2.9 does not enforce `max_payload` over MQTT; a stored one of 6 MB would cut its readers for ever."""
    for kind, channel in (("event", LETTER), ("heartbeat", STATE)):
        cam.publish(Topic(cam.address, channel, kind), b" " * (6 << 20))
    good_ones_still_work(cam)
    for service in ("registry", "courier", "depot"):
        assert "bus.disconnected" not in world.log(service)
        assert "Slow Consumer" not in world.log("nats-server")


@pytest.mark.parametrize("name", ["cam 1", "cam.1"])
def test_a_topic_that_is_no_identifier_ends_the_connection_and_is_reported(
    world: LivePlatform, cam: RawDevice, name: str
) -> None:
    thing = Thing("clumsy")
    own = admit(world, thing)
    link = Link(world, own.jwt, own.client_id)
    assert link.accepted()
    before = count(world, "registry", "connection", "bad_topic")
    link.say(f"cw/1/home/{name}/letter/event", b"{}")
    eventually(lambda: count(world, "registry", "connection", "bad_topic") > before, "the counter")
    assert logged(world, "registry", "home/clumsy", "bad_topic")
    link.close()
    good_ones_still_work(cam)


def test_what_a_device_refused_is_counted_and_logged_where_operators_look(world: LivePlatform, cam: RawDevice) -> None:
    for reason in ("wrong_digest", "made_up_by_the_device"):
        report = EventReport(
            name="piece.refused", severity="high", reason=reason, message="piece ab12: its bytes have another digest"
        )
        cam.send("event", report, lane="control")
    cam.settle()
    for reason in ("wrong_digest", "other"):
        series = f'causeway_device_refusals_total{{event="piece.refused",reason="{reason}"}} 1.0'
        eventually(lambda: series in world.metrics("registry"), series)  # noqa: B023
    assert logged(world, "registry", str(cam.address), "wrong_digest")
