"""Opening a trust pack from the bus: bounded before it is believed."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

import zstandard

from edge_runtime.errors import TrustError
from schemas.depot import MAX_TRUST_BYTES, MAX_TRUST_EXPANDED_BYTES, TrustPack
from schemas.errors import MessageError

_ZSTD_BASE64 = "KLUv/"
"""How every zstd frame begins in base64; a path never does."""
_MAX_WINDOW = 1 << 23


def load_pack(source: str | None) -> bytes:
    """Bytes of a pack that is given as base64 or as a path; empty for none.

    Raises:
        TrustError: `bad_pack` if it cannot be read, `oversized` above 256 KiB.
    """
    if source is None:
        return b""
    try:
        if source.startswith(_ZSTD_BASE64):
            return base64.b64decode(source, validate=True)
        path = Path(source)
        if path.stat().st_size > MAX_TRUST_BYTES:
            raise _oversized(path.stat().st_size)
        return path.read_bytes()
    except (OSError, ValueError, binascii.Error) as error:
        raise TrustError(f"read trust pack: {error}", reason="bad_pack") from error


def open_pack(raw: bytes) -> TrustPack:
    """Expand and check a pack.

    Raises:
        TrustError: `oversized` above 256 KiB, or 1 MiB expanded; `bad_pack` for anything that is not a pack, such as a
            file name that is no metadata's.
    """
    if len(raw) > MAX_TRUST_BYTES:
        raise _oversized(len(raw))
    limit = MAX_TRUST_EXPANDED_BYTES
    try:
        # The size in a frame's header is the sender's word, so the frame is read as a stream and cut off.
        with zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(io.BytesIO(raw)) as reader:
            text = reader.read(limit + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise TrustError(f"expand trust pack of {len(raw)} bytes: {error}", reason="bad_pack") from error
    if len(text) > limit:
        raise TrustError(f"expand trust pack: it exceeds {limit} bytes", reason="oversized")
    try:
        return TrustPack.read(text)
    except MessageError as error:
        raise TrustError(f"read trust pack: {error}", reason="bad_pack") from error


def _oversized(length: int) -> TrustError:
    return TrustError(f"read trust pack: {length} bytes exceed {MAX_TRUST_BYTES}", reason="oversized")
