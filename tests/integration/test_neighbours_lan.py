"""Devices in namespaces find each other by mDNS alone, lose each other, and follow a change of network."""

from __future__ import annotations

from pathlib import Path

import pytest
from ulid import ULID

from tests.support.lan_device import LanDevice
from tests.support.neighbours import authority, device
from tests.support.netns import Net, unavailable
from tests.support.platform import eventually

reason = unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=reason or "")
PLATFORM = str(ULID())


def test_devices_of_one_platform_find_each_other_on_a_lan(tmp_path: Path) -> None:
    of = authority(tmp_path / "ca", PLATFORM)
    stranger = device("eve", str(ULID()), authority(tmp_path / "other"))
    with Net() as net:
        lan = net.switch("lan")
        devices = {}
        for name in ("ann", "bob", "cid", "eve"):
            machine = net.machine(name)
            lan.plug(machine)
            identity = stranger if name == "eve" else device(name, PLATFORM, of)
            devices[name] = LanDevice.start(tmp_path / name, machine, identity, meet_s=0.5)
        for name in ("ann", "bob", "cid"):
            others = [f"home/{other}" for other in ("ann", "bob", "cid") if other != name]
            eventually(lambda name=name, others=others: devices[name].status().get("met") == others, f"{name} to meet")
            assert devices[name].status()["in_sight"] == others
        ignored = lambda: devices["eve"].status().get("announcements_ignored", {}).get("other_platform", 0)
        eventually(lambda: ignored() >= 3, "eve to hear of them")
        assert devices["eve"].status()["met"] == []
        assert devices["eve"].status()["refusals"] == {}, "whose platform is not ours is not even called"

        devices["cid"].process.kill()
        for name, other in (("ann", "bob"), ("bob", "ann")):
            # It said no goodbye; calls in vain tell as much.
            seen = lambda name=name: devices[name].status()["in_sight"]
            eventually(lambda seen=seen, other=other: seen() == [f"home/{other}"], f"{name} to miss cid", 30)


def test_a_device_follows_into_another_network(tmp_path: Path) -> None:
    of = authority(tmp_path / "ca", PLATFORM)
    with Net() as net:
        van, shop, depot = net.machine("van"), net.machine("shop"), net.machine("depot")
        street, yard = net.switch("street"), net.switch("yard")
        street.plug(shop)
        yard.plug(depot)
        plug = street.plug(van)
        for machine, name in ((shop, "shop"), (depot, "depot")):
            LanDevice.start(tmp_path / name, machine, device(name, PLATFORM, of), meet_s=0.5)
        moving = LanDevice.start(tmp_path / "van", van, device("van", PLATFORM, of), meet_s=0.5)
        eventually(lambda: moving.status().get("met") == ["home/shop"], "the van to meet the shop")
        plug.cut()
        van.ip("addr", "flush", "dev", plug.interface)
        yard.plug(van)
        eventually(lambda: moving.status()["met"] == ["home/depot", "home/shop"], "the van to meet the depot", 40)


def test_devices_meet_where_there_is_nothing_but_ipv6(tmp_path: Path) -> None:
    of = authority(tmp_path / "ca", PLATFORM)
    with Net() as net:
        lan = net.switch("lan", only_ipv6=True)
        devices = {}
        for number, name in enumerate(("ann", "bob", "cid"), 1):
            machine = net.machine(name)
            port = lan.plug(machine)
            if name != "ann":
                # A site with a router has unique local addresses as well; ann did not hear of it yet.
                machine.ip("addr", "add", f"fd00:cafe::{number}/64", "dev", port.interface)
            devices[name] = LanDevice.start(tmp_path / name, machine, device(name, PLATFORM, of), meet_s=0.5)
            assert "inet " not in machine.ip("addr", "show", "dev", port.interface)
        for name, found in devices.items():
            others = [f"home/{other}" for other in devices if other != name]
            eventually(lambda found=found, others=others: found.status().get("met") == others, f"{name} to meet")
        for name, starts in (("ann", ["fe80:"]), ("bob", ["fd00:cafe::2", "fe80:"])):
            announced = lambda name=name: [each[:12] for each in devices[name].status()["announced"]]
            eventually(
                lambda announced=announced, starts=starts: (
                    len(announced()) == len(starts)
                    and all(each.startswith(start) for each, start in zip(announced(), starts, strict=True))
                ),
                f"{name} to announce {starts}",
            )
