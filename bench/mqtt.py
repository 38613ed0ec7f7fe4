"""The few MQTT 3.1.1 packets that a device needs, as bytes. A client library would cost more than what is measured."""

from __future__ import annotations

import socket
import struct

CONNACK_OK = b"\x20\x02\x00\x00"
KEEPALIVE_S = 600
TIMEOUT_S = 15.0


def connect_packet(client_id: str, password: str) -> bytes:
    """CONNECT with a clean session (MQTT 3.1.1, 3.1)."""
    flags = 0b1100_0010  # user name, password, clean session
    head = _text("MQTT") + bytes([4, flags]) + struct.pack(">H", KEEPALIVE_S)
    return _packet(0x10, head + _text(client_id) + _text("device") + _text(password))


def subscribe_packet(*filters: str) -> bytes:
    """SUBSCRIBE at QoS 0 (3.8)."""
    return _packet(0x82, b"\x00\x01" + b"".join(_text(one) + b"\x00" for one in filters))


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
