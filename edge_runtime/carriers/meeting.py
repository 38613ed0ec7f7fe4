"""One meeting over a stream: length-prefixed frames carry an exchange until both sides have said everything."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Protocol

from edge_runtime.carriers.certificates import NeighbourError
from edge_runtime.carriers.port import MAX_FRAME_BYTES
from schemas.neighbours import LENGTH

FRAME_S = 30.0
"""A peer that says nothing for so long is gone."""
MEETING_S = 180.0
"""A meeting that takes longer ends; the rest is for the next one."""
CLOSE_S = 5.0
BACKLOG_BYTES = 1 << 20
"""What may wait for a peer that does not read."""


class Talk(Protocol):
    """What `exchange.Exchange` is to a transport."""

    @property
    def finished(self) -> bool:
        """Whether both sides have nothing more to say."""

    def begin(self) -> list[bytes]:
        """Frames to send first."""

    def receive(self, frame: bytes) -> list[bytes]:
        """Take a frame; returns the frames to send."""


async def hold(talk: Talk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry it out.

    Raises:
        NeighbourError: `timeout`, `lost`, `refused_there`, `oversized` or `slow`.
        EdgeError: of the exchange.
    """
    try:
        async with asyncio.timeout(MEETING_S):
            _send(writer, talk.begin())
            while not talk.finished:
                _send(writer, talk.receive(await _frame(reader)))
            await writer.drain()
    except (EOFError, OSError) as error:
        raise explain(error, "meet", "lost") from error


def explain(error: Exception, doing: str, otherwise: str) -> NeighbourError:
    """What the failure of a connection means; `otherwise` is the reason if nothing better is known."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"{doing}: the peer's certificate is not of this platform: {error.verify_message}"
        return NeighbourError(text, reason="unknown_ca")
    if isinstance(error, ssl.SSLError):
        # An alert is the peer's word on our certificate.
        reason = "refused_there" if "ALERT" in (error.reason or "") else "no_tls"
        return NeighbourError(f"{doing}: TLS failed: {error.reason or error}", reason=reason)
    if isinstance(error, TimeoutError):
        return NeighbourError(f"{doing}: no answer in time", reason="timeout")
    return NeighbourError(f"{doing}: {error!r}", reason=otherwise)


async def close(writer: asyncio.StreamWriter) -> None:
    """Let go of a connection, with what is still to be sent."""
    # One that is lost already: asyncio's TLS transport cannot be aborted any more after a second close.
    if not writer.is_closing():
        writer.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
    except (TimeoutError, OSError):
        writer.transport.abort()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(FRAME_S):
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            if not 1 <= length <= MAX_FRAME_BYTES:
                raise NeighbourError(
                    f"the peer announces a frame of {length} bytes; allowed are 1 to {MAX_FRAME_BYTES}",
                    reason="oversized",
                )
            return await reader.readexactly(length)
    except TimeoutError as error:
        raise NeighbourError(f"the peer said nothing for {FRAME_S:g} s", reason="timeout") from error


def _send(writer: asyncio.StreamWriter, frames: Sequence[bytes]) -> None:
    for frame in frames:
        writer.write(LENGTH.pack(len(frame)) + frame)
    # Not drained here: two that both wait for the other to read would wait for ever.
    if writer.transport.get_write_buffer_size() > BACKLOG_BYTES:
        raise NeighbourError("the peer does not read what it is sent", reason="slow")
