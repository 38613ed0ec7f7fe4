"""The part of MQTT 3.1.1 that a device speaks: connect with a will, subscribe, publish at QoS 0, ping. Pure.

Section numbers are those of the OASIS standard, MQTT Version 3.1.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CONNACK, PUBLISH, SUBACK, PINGRESP = 0x20, 0x30, 0x90, 0xD0
PINGREQ = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"
MAX_PACKET_BYTES = (1 << 20) + 4_096
"""The server's largest payload and its topic."""
SUBACK_FAILURE = 0x80
REFUSALS = {
    1: "unacceptable protocol version",
    2: "identifier rejected",
    3: "server unavailable",
    4: "bad user name or password",
    5: "not authorised",
}
_CLEAN_SESSION, _WILL, _PASSWORD, _USER = 0x02, 0x04, 0x40, 0x80
_MAX_LENGTH_BYTES = 4


class ProtocolError(ConnectionError):
    """The other end does not speak MQTT, or not the part that was agreed on."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One control packet as it came: its type (upper half of the first byte), its flags (lower half), the rest."""

    type: int
    flags: int
    body: bytes


def connect(client_id: str, user: str, password: str, keepalive_s: int, will: tuple[str, bytes] | None) -> bytes:
    """CONNECT (3.1) with a clean session; `will` is published by the server if the connection ends without word."""
    flags = _CLEAN_SESSION | _USER | _PASSWORD | (_WILL if will else 0)
    body = _text("MQTT") + bytes([4, flags]) + struct.pack("!H", keepalive_s) + _text(client_id)
    if will is not None:
        body += _text(will[0]) + _binary(will[1])
    return _packet(0x10, body + _text(user) + _text(password))


def subscribe(packet_id: int, filters: Sequence[str]) -> bytes:
    """SUBSCRIBE (3.8), all at QoS 0."""
    return _packet(0x82, struct.pack("!H", packet_id) + b"".join(_text(pattern) + b"\x00" for pattern in filters))


def publish(topic: str, payload: bytes) -> bytes:
    """PUBLISH (3.3) at QoS 0."""
    return _packet(PUBLISH, _text(topic) + payload)


def read_connack(packet: Packet) -> int:
    """Return code of a CONNACK (3.2); 0 is a welcome."""
    if len(packet.body) != 2:
        raise ProtocolError(f"CONNACK of {len(packet.body)} bytes")
    return packet.body[1]


def read_suback(packet: Packet) -> tuple[int, ...]:
    """Return code of each filter (3.9)."""
    if len(packet.body) < 3:
        raise ProtocolError(f"SUBACK of {len(packet.body)} bytes")
    return tuple(packet.body[2:])


def read_publish(packet: Packet) -> tuple[str, bytes]:
    """Topic and payload of a PUBLISH at QoS 0."""
    if packet.flags & 0x06:
        raise ProtocolError("a message at QoS 1 or 2, which was not subscribed to")
    if len(packet.body) < 2:
        raise ProtocolError(f"PUBLISH of {len(packet.body)} bytes")
    end = 2 + struct.unpack_from("!H", packet.body)[0]
    if end > len(packet.body):
        raise ProtocolError("PUBLISH whose topic is longer than the packet")
    try:
        return packet.body[2:end].decode(), packet.body[end:]
    except UnicodeDecodeError as error:
        raise ProtocolError("PUBLISH whose topic is no UTF-8") from error


class PacketReader:
    """Cuts a stream of bytes into packets, whatever the pieces in which it comes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def partial_bytes(self) -> int:
        """How much of the next packet is here."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Take bytes; yields the packets that they complete.

        Raises:
            ProtocolError: if the length of a packet is no length, or above `MAX_PACKET_BYTES`.
        """
        self._buffer += data
        while (extent := _extent(self._buffer)) is not None:
            start, end = extent
            if end > len(self._buffer):
                return
            first, body = self._buffer[0], bytes(self._buffer[start:end])
            del self._buffer[:end]
            yield Packet(first & 0xF0, first & 0x0F, body)


def _extent(buffer: bytearray) -> tuple[int, int] | None:
    """Where the body of the first packet begins and ends (2.2.3); None if its header is not whole yet."""
    length = 0
    for position in range(1, _MAX_LENGTH_BYTES + 1):
        if position >= len(buffer):
            return None
        length |= (buffer[position] & 0x7F) << (7 * (position - 1))
        if not buffer[position] & 0x80:
            if length > MAX_PACKET_BYTES:
                raise ProtocolError(f"a packet of {length} bytes; {MAX_PACKET_BYTES} are allowed")
            return position + 1, position + 1 + length
    raise ProtocolError("a packet whose length has more than 4 bytes")


def _packet(first: int, body: bytes) -> bytes:
    length, encoded = len(body), bytearray([first])
    while True:
        length, digit = divmod(length, 128)
        encoded.append(digit | (0x80 if length else 0))
        if not length:
            return bytes(encoded) + body


def _text(text: str) -> bytes:
    return _binary(text.encode())


def _binary(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data
