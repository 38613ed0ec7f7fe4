from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from edge_runtime.carriers.discovery import MAX_PLACES, Interfaces, places_of
from schemas.errors import MessageError
from schemas.ids import IDENTIFIER, Address
from schemas.neighbours import MAX_TXT_BYTES, SERVICE_TYPE, Announcement, instance_name, platform_hash

PLATFORM = str(ULID())
names = st.from_regex(IDENTIFIER, fullmatch=True)
LAN = Interfaces(frozenset({ipaddress.IPv4Interface("10.1.2.3/24"), ipaddress.IPv4Interface("192.168.7.9/16")}))


def raw(properties: dict[str, str]) -> dict[bytes, bytes | None]:
    return {key.encode(): value.encode() for key, value in properties.items()}


@given(names, names)
def test_an_announcement_reads_back_and_fits(fleet: str, device: str) -> None:
    announcement = Announcement(platform_hash(PLATFORM), Address(fleet, device))
    properties = raw(announcement.properties())
    assert Announcement.parse(properties) == announcement
    assert sum(len(key) + len(value or b"") + 2 for key, value in properties.items()) <= MAX_TXT_BYTES
    label = instance_name(announcement).removesuffix(f".{SERVICE_TYPE}")
    assert len(label) <= 63
    assert "." not in label
    assert PLATFORM not in str(properties), "the platform's id is not everybody's business"


GOOD = raw(Announcement(platform_hash(PLATFORM), Address("home", "cam")).properties())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({b"v": b"2"}, "unsupported_version"),
        ({b"v": None}, "unsupported_version"),
        ({b"p": b"short"}, "malformed"),
        ({b"p": None}, "malformed"),
        ({b"f": b"no/fleet"}, "malformed"),
        ({b"d": b""}, "malformed"),
        ({b"d": b"\xff"}, "malformed"),
        ({b"x": b"x" * MAX_TXT_BYTES}, "oversized"),
    ],
)
def test_a_bad_announcement_is_refused(change: dict[bytes, bytes | None], reason: str) -> None:
    with pytest.raises(MessageError) as caught:
        Announcement.parse(GOOD | change)
    assert caught.value.reason == reason


@given(st.dictionaries(st.binary(max_size=20), st.none() | st.binary(max_size=100), max_size=6))
def test_whatever_comes_is_read_or_refused(properties: dict[bytes, bytes | None]) -> None:
    try:
        announcement = Announcement.parse(GOOD | properties)
    except MessageError:
        return
    assert len(announcement.platform_hash) == 16


def packed(*addresses: str) -> list[bytes]:
    return [socket.inet_aton(address) for address in addresses]


def test_only_places_in_our_networks_are_called() -> None:
    assert places_of(packed("10.1.2.9", "8.8.8.8", "192.168.1.1"), 99, LAN) == (("10.1.2.9", 99), ("192.168.1.1", 99))
    many = packed(*(f"10.1.2.{n}" for n in range(10, 40)))
    assert len(places_of(many, 99, LAN)) == MAX_PLACES


@pytest.mark.parametrize(
    ("addresses", "port"),
    [
        (packed("8.8.8.8"), 99),
        (packed("10.1.2.3"), 99),
        (packed("10.1.2.9"), 0),
        (packed("10.1.2.9"), None),
        (packed("10.1.2.9"), 70_000),
        ([b"\x01" * 16], 99),
        ([], 99),
    ],
    ids=["far", "own", "port 0", "no port", "port too high", "IPv6", "nowhere"],
)
def test_an_announcement_without_a_place_is_refused(addresses: list[bytes], port: int | None) -> None:
    with pytest.raises(MessageError) as caught:
        places_of(addresses, port, LAN)
    assert caught.value.reason == "no_place"
