from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from bench.mqtt import CONNACK_OK, Packets, connect_packet, publish_packet, publish_qos1_packet, read_publish
from bench.returning import Device, Person, QueueReader
from schemas.courier import Receipt
from schemas.depot import TrustState
from schemas.envelope import Signer, Verifier
from schemas.errors import EnvelopeError
from schemas.events import Untyped
from schemas.ids import Address
from schemas.letters import read_state, write_down
from schemas.topics import Channel, Topic, broadcast_mqtt

PERSON = Person("bench", "d0001", "bench-client-id-0001", "jwt")
ADDRESS = Address("bench", "d0001")
SUBACK = b"\x90\x04\x00\x01\x00\x00"
COURIER = Signer.generate()
PLATFORM = str(ULID())


def letter(kind: str, data: object, letter_id: str = "", signer: Signer = COURIER) -> bytes:
    now = datetime.now(UTC)
    raw = write_down(
        kind,
        data if isinstance(data, Receipt) else Untyped.model_validate(data),
        letter_id=letter_id or str(ULID()),
        service="courier",
        address=ADDRESS,
        platform=PLATFORM,
        time=now,
        expires=now + timedelta(hours=1),
        generation=1,
        revision=1,
        slot="-",
        signer=signer,
    )
    return publish_packet(Topic(ADDRESS, Channel.DOWN, kind).mqtt, raw)


def said(data: bytes) -> list[tuple[str, object]]:
    """Kind and content of the state messages among packets."""
    publishes = [read_publish(first, body) for first, body in Packets().feed(data) if first >> 4 == 3]
    kinds = [(topic.rpartition("/")[2], payload) for topic, _, payload in publishes]
    return [(kind, read_state(payload, kind).data) for kind, payload in kinds]


def greeted(letters: int = 1, *, verifies: bool = False, connected: float = 1.0) -> tuple[Device, Receipt]:
    keys = {COURIER.keyid: Verifier(COURIER.public_key)} if verifies else None
    device = Device(PERSON, letters, TrustState(root=1), keys)
    connect = device.begin()
    device.take(CONNACK_OK, connected)
    ((kind, hello),) = said(device.take(SUBACK, 1.0))
    assert kind == "hello"
    (will,) = re.findall(rb"\{.*\}", connect)
    assert read_state(will, "gone").data.session == hello.session
    topic = Topic(ADDRESS, Channel.STATE, "gone").mqtt
    assert connect == connect_packet(PERSON.client_id, PERSON.password, will=(topic, will))
    return device, Receipt(session=hello.session, epoch=hello.epoch, marks={})


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(min_value=1, max_value=64))
def test_packets_come_whole_whatever_the_pieces(bodies: list[bytes], step: int) -> None:
    stream = b"".join(publish_packet("a/b", body) for body in bodies)
    reader, found = Packets(), []
    for start in range(0, len(stream), step):
        found += reader.feed(stream[start : start + step])
    assert [read_publish(first, body)[2] for first, body in found] == bodies


def test_a_device_is_in_sync_when_it_has_all_and_has_said_got() -> None:
    device, receipt = greeted(letters=2)
    device.take(publish_packet(Topic(ADDRESS, Channel.DOWN, "trust").mqtt, b"pack"), 1.1)
    ids = [str(ULID()), str(ULID())]
    device.take(letter("assign", {"n": 1}, ids[0]), 1.2)
    assert [kind for kind, _ in said(device.take(letter("receipt", receipt), 1.3))] == ["got", "heartbeat"]
    assert device.story.in_sync is None
    device.take(letter("assign", {"n": 2}, ids[1]), 1.4)
    assert device.wake == pytest.approx(1.42)
    ((kind, got),) = said(device.turn(1.42))
    assert (kind, got.ids) == ("got", [ids[1]])
    assert (device.story.answered, device.story.in_sync) == (1.3, 1.42)
    assert device.wake is None


def test_hello_is_repeated_until_both_answers_have_come_and_receipts_of_others_say_nothing() -> None:
    device, receipt = greeted()
    device.take(letter("receipt", receipt.model_copy(update={"session": str(ULID())})), 1.1)
    assert device.story.answered is None
    assert device.wake is not None
    assert 1.0 + 1.5 * 0.7 <= device.wake <= 1.0 + 1.5 * 1.3
    assert [kind for kind, _ in said(device.turn(device.wake))] == ["hello"]
    device.take(letter("receipt", receipt), 5.0)
    assert device.wake is not None
    device.take(publish_packet(Topic(ADDRESS, Channel.DOWN, "trust").mqtt, b"pack"), 5.1)
    assert device.wake is None
    assert device.story.hellos == 2


def test_on_a_far_link_hello_waits_for_two_round_trips_more() -> None:
    device, _ = greeted(connected=-9.0)
    assert device.wake is not None
    assert 1.0 + (1.5 + 2 * 10.0) * 0.7 <= device.wake <= 1.0 + (1.5 + 2 * 10.0) * 1.3


def test_a_letter_that_comes_again_is_got_again_and_counted() -> None:
    device, receipt = greeted()
    device.take(publish_packet(Topic(ADDRESS, Channel.DOWN, "trust").mqtt, b"pack"), 1.1)
    device.take(letter("receipt", receipt), 1.1)
    raw = letter("assign", {}, str(ULID()))
    for at in (2.0, 3.0):
        device.take(raw, at)
        assert [kind for kind, _ in said(device.turn(at + 0.02))] == ["got"]
    assert device.story.copies == 2
    assert list(device.arrived.values()) == [2.0]


def test_a_device_that_verifies_takes_no_letter_of_a_stranger() -> None:
    device, _ = greeted(verifies=True)
    with pytest.raises(EnvelopeError, match="known key"):
        device.take(letter("assign", {}, signer=Signer.generate()), 1.0)


def test_broadcasts_are_noted_and_a_refusal_is_an_error() -> None:
    device, _ = greeted()
    device.take(publish_packet(broadcast_mqtt("bench", "trust"), json.dumps({}).encode()), 7.0)
    assert device.told == 7.0
    with pytest.raises(ConnectionError, match="code 5"):
        device.take(b"\x20\x02\x00\x05", 8.0)


def test_a_reader_of_a_kept_session_acknowledges_each_and_is_done_with_the_last() -> None:
    reader = QueueReader(PERSON, "mail/d0001", 2)
    assert reader.begin() == connect_packet(PERSON.client_id, PERSON.password, clean=False)
    assert reader.take(b"\x20\x02\x01\x00", 0.5) == b""
    assert reader.take(publish_qos1_packet("mail/d0001", b"one", 258), 1.0) == b"\x40\x02\x01\x02"
    reader.take(publish_qos1_packet("mail/d0001", b"one", 258), 1.5)
    assert reader.story.in_sync is None
    reader.take(publish_qos1_packet("mail/d0001", b"two", 7), 2.0)
    assert (reader.story.in_sync, reader.story.copies) == (2.0, 3)
