from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.link import mqtt
from edge_runtime.link.mqtt import Packet, PacketReader, ProtocolError


def read(data: bytes, cuts: list[int]) -> list[Packet]:
    reader, found, start = PacketReader(), [], 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        found += reader.feed(data[start:cut])
        start = cut
    assert reader.partial_bytes == 0
    return found


@given(st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=300)), max_size=8), st.lists(st.integers(0, 5_000)))
def test_messages_survive_however_the_bytes_are_cut(messages, cuts) -> None:
    data = b"".join(mqtt.publish(topic, payload) for topic, payload in messages)
    assert [mqtt.read_publish(packet) for packet in read(data, cuts)] == messages


@pytest.mark.parametrize("length", [0, 127, 128, 16_383, 16_384, 1 << 20])
def test_lengths_of_one_to_three_bytes(length) -> None:
    (packet,) = read(mqtt.publish("t", b"x" * length), [1, 2, 3, 4])
    assert mqtt.read_publish(packet) == ("t", b"x" * length)


@given(st.binary(max_size=400))
@example(b"\x30\xff\xff\xff\xff\x01")
@example(b"\x30\xff\xff\xff\x7f")
@example(b"\x30\x02\x00\x05")
@example(b"\x30\x03\x00\x01\xff")
@example(b"\x32\x04\x00\x01t!")
@example(b"\x20\x01\x00\x90\x02\x00\x01")
def test_whatever_comes_is_a_packet_or_a_protocol_error_and_memory_is_bounded(data) -> None:
    reader = PacketReader()
    try:
        for packet in reader.feed(data):
            for parse in (mqtt.read_connack, mqtt.read_suback, mqtt.read_publish):
                try:
                    parse(packet)
                except ProtocolError:
                    continue
    except ProtocolError:
        return
    assert reader.partial_bytes <= min(len(data), mqtt.MAX_PACKET_BYTES + 5)


def test_a_packet_that_is_too_long_is_refused_before_it_is_here() -> None:
    with pytest.raises(ProtocolError, match="are allowed"):
        list(PacketReader().feed(b"\x30\xff\xff\xff\x7f"))


def test_connect_says_what_the_standard_says() -> None:
    assert mqtt.connect("id", "u", "p", 60, ("w", b"bye")) == (
        b"\x10\x1c\x00\x04MQTT\x04\xc6\x00\x3c\x00\x02id\x00\x01w\x00\x03bye\x00\x01u\x00\x01p"
    )
    assert mqtt.connect("id", "u", "p", 60, None)[9] == 0xC2
    assert mqtt.subscribe(1, ["a/+", "b"]) == b"\x82\x0c\x00\x01\x00\x03a/+\x00\x00\x01b\x00"


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (Packet(mqtt.PUBLISH, 0x02, b"\x00\x01t\x00\x01"), "QoS 1 or 2"),
        (Packet(mqtt.PUBLISH, 0, b"\x00"), "1 bytes"),
        (Packet(mqtt.PUBLISH, 0, b"\x00\x09t"), "longer than the packet"),
        (Packet(mqtt.PUBLISH, 0, b"\x00\x01\xff"), "no UTF-8"),
    ],
)
def test_a_message_that_was_not_agreed_on_is_refused(packet, why) -> None:
    with pytest.raises(ProtocolError, match=why):
        mqtt.read_publish(packet)
