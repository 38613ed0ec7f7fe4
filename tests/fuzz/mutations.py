"""Small damages to a message: to its bytes, and to its JSON where it has any. Drawn by hypothesis, so they shrink."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Damage = Callable[[bytes], bytes]

_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, 1e308, 5e-324, -0.0, "", "\x00", "a" * 600,
    "é" * 70, "\ud800", "../../etc/passwd", "2026-02-30T00:00:00Z", "9999-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00Z", [], {}, [[[[[]]]]], {"": {}}, [0] * 300, {str(n): n for n in range(70)},
)  # fmt: skip
_TOKENS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"\xff",
    b"\x00",
    b"," * 9,
)


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[bytes, ...], *, most: int = 4) -> bytes:
    """A seed with up to `most` damages; sometimes anything at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, most))):
        data = draw(st.sampled_from(_DAMAGES))(draw, data)
    return data


def _flip(draw: st.DrawFn, data: bytes) -> bytes:
    if not data:
        return b"\x00"
    at, value = draw(st.integers(0, len(data) - 1)), draw(st.integers(0, 255))
    return data[:at] + bytes([value]) + data[at + 1 :]


def _cut(draw: st.DrawFn, data: bytes) -> bytes:
    start = draw(st.integers(0, len(data)))
    return data[:start] + data[start + draw(st.integers(0, 64)) :]


def _double(draw: st.DrawFn, data: bytes) -> bytes:
    start = draw(st.integers(0, len(data)))
    end = min(len(data), start + draw(st.integers(1, 64)))
    return data[:end] + data[start:end] * draw(st.sampled_from((1, 2, 50))) + data[end:]


def _insert(draw: st.DrawFn, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.sampled_from(_TOKENS)) * draw(st.sampled_from((1, 1, 2, 2_000))) + data[at:]


def _json(draw: st.DrawFn, data: bytes) -> bytes:
    """Replace, remove or repeat one value somewhere in the document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(draw, data)
    places = list(_places(document))
    if not places:
        return data
    holder, key = draw(st.sampled_from(places))
    action = draw(st.integers(0, 3))
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, list):
        holder.extend([holder[key]] * draw(st.sampled_from((1, 300))))
    elif action == 2 and isinstance(holder, dict):
        holder[draw(st.sampled_from(("", "data", "id", "x" * 100, "../x")))] = holder[key]
    else:
        holder[key] = draw(st.sampled_from(_ODD))
    return json.dumps(document).encode(errors="surrogatepass")


def _places(value: Any) -> Any:
    """Every (container, key) of a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield value, key
        yield from _places(part)


_DAMAGES = (_flip, _cut, _double, _insert, _json, _json, _json)
