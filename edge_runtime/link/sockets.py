"""What the kernel can be told and asked about a TCP connection. Beside Linux less is known, and nothing fails."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from dataclasses import dataclass

from edge_runtime.logs import Log

log = Log(__name__)

NOTSENT_BYTES = 16 * 1024
"""What the kernel takes beyond what it can send at once; the rest stays here, where urgent packets overtake it."""
MAX_REPEAT_MS = 8_000
"""What was lost is repeated at least so often; by itself TCP waits up to two minutes after a row of losses."""
SMALL_SNDBUF = 32 * 1024
"""Where the kernel does not say how much it holds, it may not hold much."""
_THIN_LINEAR_TIMEOUTS = 16
"""TCP_THIN_LINEAR_TIMEOUTS of linux/tcp.h: few packets under way are repeated at even
intervals, not ever more rarely."""
_RTO_MAX_MS = 44
"""TCP_RTO_MAX_MS of linux/tcp.h, since Linux 6.15."""
_CONGESTION = 13
"""TCP_CONGESTION of linux/tcp.h."""
_NAME_BYTES = 16
_SIOCOUTQ = 0x5411
_INFO_BYTES = 192
_WORDS_AT = 8
"""In struct tcp_info (linux/tcp.h) eight bytes stand before its 32-bit words."""
_LAST_DATA_RECEIVED, _LAST_ACK_RECEIVED, _RTT = 11, 12, 15
_RETRANSMITTED = 23
_SEGMENTS_AT = 156
"""Offset of tcpi_data_segs_out."""


@dataclass(frozen=True, slots=True)
class TcpFacts:
    """What the kernel measured on a connection.

    Attributes:
        round_trip_s: smoothed.
        since_data_s: since the last data came.
        since_ack_s: since the other end last acknowledged anything.
        segments: with data, sent so far, repetitions included.
        repeated: of these.
    """

    round_trip_s: float
    since_data_s: float
    since_ack_s: float
    segments: int
    repeated: int


def tune(connection: socket.socket) -> None:
    """Keep the kernel's queue short, and repetitions on a lossy link frequent."""
    wishes = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if sys.platform == "linux":
        wishes += [(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)]
        wishes += [(socket.IPPROTO_TCP, _THIN_LINEAR_TIMEOUTS, 1)]
        wishes += [(socket.IPPROTO_TCP, _RTO_MAX_MS, MAX_REPEAT_MS)]
    else:
        wishes += [(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_SNDBUF)]
    for level, option, value in wishes:
        try:
            connection.setsockopt(level, option, value)
        except OSError as error:
            # A kernel that only looks like Linux; the connection works without.
            log.debug("socket.option_unknown", option=option, message=str(error))


def congestion(connection: socket.socket) -> str | None:
    """How the kernel finds the rate of TCP, by its name for it; None where it does not say."""
    if sys.platform != "linux":
        return None
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, _CONGESTION, _NAME_BYTES).split(b"\0")[0].decode()
    except OSError:
        # A kernel that only looks like Linux.
        return None


def use_congestion(connection: socket.socket, name: str) -> None:
    """Have it found otherwise; a kernel that has no such way, or not for everybody, goes on as before."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, _CONGESTION, name.encode())
    except OSError as error:
        log.info("socket.congestion_refused", name=name, message=str(error))


def unacknowledged(connection: socket.socket) -> int:
    """Bytes that the kernel holds until the other end has them; 0 where it does not say."""
    if sys.platform != "linux":
        return 0
    import fcntl  # noqa: PLC0415 - not on every system

    try:
        answer = fcntl.ioctl(connection.fileno(), _SIOCOUTQ, bytes(4))
    except OSError as error:
        if error.errno in {errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP}:
            return 0
        raise
    return int(struct.unpack("i", answer)[0])


def facts(connection: socket.socket) -> TcpFacts | None:
    """Ask the kernel; None where it does not say."""
    if sys.platform != "linux":
        return None
    raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    if len(raw) < _SEGMENTS_AT + 4:
        return None
    words = struct.unpack_from("24I", raw, _WORDS_AT)
    return TcpFacts(
        round_trip_s=words[_RTT] / 1e6,
        since_data_s=words[_LAST_DATA_RECEIVED] / 1e3,
        since_ack_s=words[_LAST_ACK_RECEIVED] / 1e3,
        segments=struct.unpack_from("I", raw, _SEGMENTS_AT)[0],
        repeated=words[_RETRANSMITTED],
    )
