from __future__ import annotations

import asyncio
import gc
import ipaddress
import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from edge_runtime.carriers.certificates import NeighbourError
from edge_runtime.carriers.discovery import MAX_PLACES, Discovery, places_of
from edge_runtime.carriers.interfaces import Interfaces
from schemas.errors import MessageError
from schemas.ids import IDENTIFIER, Address
from schemas.neighbours import MAX_TXT_BYTES, SERVICE_TYPE, Announcement, instance_name, platform_hash
from tests.support.platform import until

PLATFORM = str(ULID())
names = st.from_regex(IDENTIFIER, fullmatch=True)
LAN = Interfaces(
    frozenset(
        {
            ipaddress.IPv4Interface("10.1.2.3/24"),
            ipaddress.IPv4Interface("192.168.7.9/16"),
            ipaddress.IPv6Interface("fe80::3%2/64"),
            ipaddress.IPv6Interface("fe80::9%5/64"),
            ipaddress.IPv6Interface("fd00:1::3%2/64"),
        }
    )
)


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


def test_an_interface_that_goes_while_it_is_asked_about_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = SimpleNamespace(family=socket.AF_INET6, address="fe80::5%gone0", netmask="ffff:ffff:ffff:ffff::")
    here = SimpleNamespace(family=socket.AF_INET, address="10.1.2.3", netmask="255.255.255.0")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"gone0": [gone], "eth9": [here]})
    assert Interfaces.read(None).addresses == ["10.1.2.3"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # zeroconf's socket
async def test_an_address_that_goes_before_it_is_announced_is_a_problem_and_no_end() -> None:
    discovery = Discovery(PLATFORM, Address("home", "cam"), lambda *_: None, lambda _: None)
    with pytest.raises(NeighbourError) as caught:
        await discovery.start(Interfaces(frozenset({ipaddress.IPv6Interface("fe80::dead%2/64")})), 9)
    assert caught.value.reason == "no_multicast"
    del caught
    gc.collect()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_start_that_is_broken_off_leaves_nothing_open() -> None:
    open_before = open_files()
    loopback = Interfaces(frozenset({ipaddress.IPv4Interface("127.0.0.1/8")}))
    discovery = Discovery(PLATFORM, Address("home", "cam"), lambda *_: None, lambda _: None)
    start = asyncio.create_task(discovery.start(loopback, 9))
    await until(lambda: open_files() > open_before, "its sockets")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await until(lambda: open_files() == open_before, "its sockets to be closed")


def test_only_places_in_our_networks_are_called() -> None:
    assert places_of(["10.1.2.9", "8.8.8.8", "192.168.1.1"], 99, LAN) == (("10.1.2.9", 99), ("192.168.1.1", 99))
    several = ["fe80::7%5", "fd00:1::7", "10.1.2.9", "fd00:2::7", "2001:db8::7", "fe80::3%2", "fe80::9%5", "::1"]
    assert places_of(several, 99, LAN) == (("10.1.2.9", 99), ("fd00:1::7", 99), ("fe80::7%5", 99))
    many = [f"10.1.2.{n}" for n in range(10, 40)]
    assert len(places_of(many, 99, LAN)) == MAX_PLACES


@pytest.mark.parametrize(
    ("addresses", "port"),
    [
        (["8.8.8.8"], 99),
        (["10.1.2.3"], 99),
        (["10.1.2.9"], 0),
        (["10.1.2.9"], None),
        (["10.1.2.9"], 70_000),
        (["fe80::7"], 99),
        (["fe80::7%3"], 99),
        (["fe80::3%2"], 99),
        (["::ffff:10.1.2.9"], 99),
        ([], 99),
    ],
    ids=[
        "far",
        "own",
        "port 0",
        "no port",
        "port too high",
        "no link",
        "other link",
        "own link-local",
        "mapped",
        "nowhere",
    ],
)
def test_an_announcement_without_a_place_is_refused(addresses: list[str], port: int | None) -> None:
    with pytest.raises(MessageError) as caught:
        places_of(addresses, port, LAN)
    assert caught.value.reason == "no_place"


@pytest.mark.parametrize(
    ("arrived_at", "welcome"),
    [
        (("10.1.2.3", 99), True),
        (("::ffff:10.1.2.3", 99, 0, 0), True),
        (("::ffff:10.1.2.4", 99, 0, 0), False),
        (("fe80::3%eth0", 99, 0, 2), True),
        (("fe80::3", 99, 0, 2), True),
        (("fe80::3", 99, 0, 5), False),
        (("fd00:1::3", 99, 0, 0), True),
        (("2001:db8::3", 99, 0, 0), False),
    ],
)
def test_a_call_is_welcome_on_an_address_of_these_networks(arrived_at: tuple[object, ...], welcome: bool) -> None:
    assert LAN.welcome(arrived_at) is welcome


def test_multicast_goes_out_once_per_link() -> None:
    assert LAN.speaking == ["10.1.2.3", "192.168.7.9", "fe80::3", "fe80::9"]
    assert LAN.addresses == ["10.1.2.3", "192.168.7.9", "fd00:1::3", "fe80::3", "fe80::9"]


def test_links_that_share_an_address_are_named_by_number() -> None:
    vlans = [ipaddress.IPv6Interface(text) for text in ("fe80::1%2/64", "fe80::1%3/64", "fe80::5%4/64")]
    same = [ipaddress.IPv4Interface(text) for text in ("10.1.2.3/24", "10.1.2.3/32")]
    assert Interfaces(frozenset(vlans)).speaking == [2, 3, "fe80::5"]
    assert set(Interfaces(frozenset([*vlans, *same])).speaking) == {"10.1.2.3", 2, 3, "fe80::5"}
