"""The few MQTT 3.1.1 packets that a device needs, as bytes. A client library would cost more than what is measured."""

from __future__ import annotations

import socket
import struct

CONNACK_OK = b"\x20\x02\x00\x00"
KEEPALIVE_S = 600
TIMEOUT_S = 15.0


def connect_packet(
    client_id: str, password: str, *, clean: bool = True, will: tuple[str, bytes] | None = None
) -> bytes:
    """CONNECT (MQTT 3.1.1, 3.1); not `clean` asks for a session that outlives the connection."""
    flags = 0b1100_0000 | (clean << 1) | ((will is not None) << 2)  # user name, password
    body = _text("MQTT") + bytes([4, flags]) + struct.pack(">H", KEEPALIVE_S) + _text(client_id)
    if will is not None:
        topic, payload = will
        body += _text(topic) + struct.pack(">H", len(payload)) + payload
    return _packet(0x10, body + _text("device") + _text(password))


def subscribe_packet(*filters: str, qos: int = 0) -> bytes:
    """SUBSCRIBE (3.8)."""
    return _packet(0x82, b"\x00\x01" + b"".join(_text(one) + bytes([qos]) for one in filters))


def publish_qos1_packet(topic: str, body: bytes, number: int) -> bytes:
    """A whole PUBLISH at QoS 1 with its packet identifier."""
    return _packet(0x32, _text(topic) + struct.pack(">H", number) + body)


def puback_packet(number: bytes) -> bytes:
    """PUBACK of a packet identifier, as its two bytes (3.4)."""
    return b"\x40\x02" + number


class Packets:
    """Cuts a stream of bytes into packets."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Whole packets, as first byte and body; what is not whole yet waits for more."""
        data = self._rest + data if self._rest else data
        found, at = [], 0
        while (head := _head(data, at)) is not None:
            start, length = head
            if len(data) < start + length:
                break
            found.append((data[at], data[start : start + length]))
            at = start + length
        self._rest = data[at:]
        return found


def read_publish(first: int, body: bytes) -> tuple[str, bytes, bytes]:
    """Topic, packet identifier (empty at QoS 0) and payload of a PUBLISH."""
    end = 2 + struct.unpack_from(">H", body)[0]
    after = end + 2 if first & 0x06 else end
    return body[2:end].decode(), body[end:after], body[after:]


def publish_head(topic: str, body_bytes: int) -> bytes:
    """All of a PUBLISH at QoS 0 before its body (3.3)."""
    name = _text(topic)
    return b"\x30" + _length(len(name) + body_bytes) + name


def publish_packet(topic: str, body: bytes) -> bytes:
    """A whole PUBLISH at QoS 0."""
    return publish_head(topic, len(body)) + body


def open_device(host: str, port: int) -> socket.socket:
    """A connection without delays of its own."""
    link = socket.create_connection((host, port), timeout=TIMEOUT_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def accepted(link: socket.socket, who: str) -> None:
    """Read the CONNACK.

    Raises:
        ConnectionError: if the server refuses or closes.
    """
    answer = b""
    while len(answer) < 4:
        more = link.recv(4 - len(answer))
        if not more:
            raise ConnectionError(f"connect {who}: the server closed the connection; were its credentials accepted?")
        answer += more
    if answer != CONNACK_OK:
        raise ConnectionError(f"connect {who}: refused with CONNACK code {answer[3]}; 5 means wrong credentials")


def _packet(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _length(len(body)) + body


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">H", len(raw)) + raw


def _length(count: int) -> bytes:
    out = bytearray()
    while True:
        count, low = divmod(count, 128)
        out.append(low | (0x80 if count else 0))
        if not count:
            return bytes(out)


def _head(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the body of the packet at `at` begins, and its length; None if that is not known yet."""
    length = 0
    for place in range(1, 5):
        if at + place >= len(data):
            return None
        byte = data[at + place]
        length |= (byte & 0x7F) << (7 * (place - 1))
        if not byte & 0x80:
            return at + place + 1, length
    raise ConnectionError("a packet's length has more than four bytes: this is not MQTT 3.1.1")
