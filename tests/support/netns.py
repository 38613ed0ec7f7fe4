"""Networks of their own for tests: namespaces as machines, switches between them, cables that can be cut and slowed.

    with Net() as net:
        ship, harbour = net.machine("ship"), net.machine("harbour")
        radio = net.switch("radio")
        port = radio.plug(ship, Shape(rate_kbit=50, delay_ms=1_000, loss=0.3, seed=7))
        radio.plug(harbour)
        ship.popen([...]); port.cut(); port.restore(); port.shape(Shape())

Everything is gone when the block ends; what a killed test left behind goes when the next one begins.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.wire import Shape

__all__ = ["Machine", "Net", "Port", "Shape", "Switch", "unavailable"]

NETWORK = "198.18"
"""Set aside for tests of networks (RFC 2544); each switch takes a /24 of it."""
PREFIX = "cwt"
END_S = 10.0
_FOLDER = Path("/run/netns")
_counter = itertools.count(1)


def unavailable() -> str | None:
    """Why namespaces cannot be had here, for `pytest.mark.skipif`; None if they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        return "`ip` (iproute2) or `nsenter` (util-linux) is not installed"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    probe = f"{PREFIX}.{os.getpid()}.probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no namespace can be made: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


@dataclass
class Machine:
    """A network namespace; "" as `namespace` is the one that the test itself runs in."""

    namespace: str
    addresses: dict[str, str] = field(default_factory=dict)
    """By the name of the switch."""
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)
    plugs: int = 0

    @property
    def prefix(self) -> list[str]:
        """What makes a command run on this machine; the process keeps its id."""
        return ["nsenter", f"--net={_FOLDER / self.namespace}"] if self.namespace else []

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """A short command; its failure is one of the test."""
        return subprocess.run([*self.prefix, *command], check=True, capture_output=True, text=True, **options)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A process that is killed with the network if it still runs then."""
        process = subprocess.Popen([*self.prefix, *command], **options)
        self.processes.append(process)
        return process

    def ip(self, *arguments: str) -> str:
        """`ip` inside this machine."""
        return _ip(*(["-n", self.namespace] if self.namespace else []), *arguments)


@dataclass
class Port:
    """A machine's cable to a switch."""

    net: Net
    machine: Machine
    switch: Switch
    interface: str
    outlet: str
    address: str
    """Empty where the switch has no IPv4."""
    shaped: bool

    def cut(self) -> None:
        """Pull the plug: nothing passes, and nobody is told."""
        if self.shaped:
            self.net.wire("cut", self.outlet)
        else:
            self.switch.machine.ip("link", "set", self.outlet, "nomaster")

    def restore(self) -> None:
        """Put it in again."""
        if self.shaped:
            self.net.wire("restore", self.outlet)
        else:
            self.switch.machine.ip("link", "set", self.outlet, "master", "br0")

    def shape(self, shape: Shape) -> None:
        """Change the cable; it must have been plugged in with a shape."""
        assert self.shaped, "plug it in with a Shape, be it Shape(), to change it later"
        self.net.wire("shape", self.outlet, shape=shape.write())

    def counts(self) -> dict[str, int]:
        """Frames carried, lost by chance and lost by a full queue, of a cable with a shape."""
        return self.net.wire("count", self.outlet)


@dataclass
class Switch:
    """An Ethernet switch in a namespace of its own, that floods multicast as simple ones do."""

    net: Net
    name: str
    machine: Machine
    subnet: int
    only_ipv6: bool = False
    ports: list[Port] = field(default_factory=list)

    def plug(self, machine: Machine, shape: Shape | None = None) -> Port:
        """Connect a machine; with a `shape` through a cable that can be slow, far and lossy."""
        number = len(self.ports) + 1
        machine.plugs += 1
        # In the test's own namespace names of several networks meet.
        interface = f"eth{machine.plugs}" if machine.namespace else f"{PREFIX}{os.getpid()}x{next(_counter)}"
        port = Port(
            net=self.net,
            machine=machine,
            switch=self,
            interface=interface,
            outlet=f"s{self.subnet}p{number}",
            address="" if self.only_ipv6 else f"{NETWORK}.{self.subnet}.{number}",
            shaped=shape is not None,
        )
        self._lay(port)
        self.machine.ip("link", "set", port.outlet, "master", "br0", "up")
        if self.only_ipv6:
            machine.run(["sysctl", "-qw", f"net.ipv6.conf.{interface}.disable_ipv6=0"])
        else:
            machine.ip("addr", "add", f"{port.address}/24", "dev", interface)
        machine.ip("link", "set", interface, "up")
        if machine.namespace and machine.plugs == 1 and not self.only_ipv6:
            machine.ip("route", "add", "224.0.0.0/4", "dev", interface)
        if shape is not None:
            port.shape(shape)
        machine.addresses[self.name] = port.address
        self.ports.append(port)
        self.net.plugs.append(port)
        return port

    def _lay(self, port: Port) -> None:
        if port.shaped:
            ends = [[_file(port.machine), port.interface], [_file(self.machine), port.outlet]]
            self.net.wire("add", port.outlet, ends=ends)
            return
        there = ["netns", port.machine.namespace] if port.machine.namespace else ["netns", str(os.getpid())]
        pair = ("type", "veth", "peer", "name", port.interface, *there)
        self.machine.ip("link", "add", port.outlet, *pair)


class Net:
    """Machines and switches, all gone at the end."""

    def __init__(self) -> None:
        self._tag = f"{PREFIX}.{os.getpid()}.{next(_counter)}"
        self._machines: list[Machine] = []
        self.plugs: list[Port] = []
        self._subnets = itertools.count(1)
        self._wire: subprocess.Popen[str] | None = None
        self.here = Machine("")
        """The namespace of the test itself: what it starts as always runs there."""

    def __enter__(self) -> Self:
        _sweep()
        return self

    def __exit__(self, *_: object) -> None:
        for machine in [self.here, *self._machines]:
            for process in machine.processes:
                if process.poll() is None:
                    process.kill()
                    process.wait(END_S)
        if self._wire is not None:
            with self._wire as wire:
                assert wire.stdin is not None
                wire.stdin.close()
                wire.wait(END_S)
        for port in self.plugs:
            # The kernel takes a namespace down later, and with it the ends of its cables elsewhere.
            if not port.shaped:
                port.switch.machine.ip("link", "del", port.outlet)
        for machine in self._machines:
            _ip("netns", "del", machine.namespace)

    def machine(self, name: str, *, loopback: bool = True) -> Machine:
        """A new one, with no cable; without `loopback` it cannot even reach itself."""
        namespace = f"{self._tag}.{name}"
        _ip("netns", "add", namespace)
        machine = Machine(namespace)
        self._machines.append(machine)
        # A machine with two cables is no router, whatever the host is.
        machine.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv4.ip_forward=0"])
        if loopback:
            machine.ip("link", "set", "lo", "up")
        return machine

    def switch(self, name: str, *, only_ipv6: bool = False) -> Switch:
        """A new one, with a network of its own; of IPv6 machines give themselves the link-local addresses."""
        machine = self.machine(f"switch-{name}")
        machine.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0", "forward_delay", "0")
        machine.ip("link", "set", "br0", "up")
        return Switch(self, name, machine, next(self._subnets), only_ipv6)

    def wire(self, do: str, cable: str, **more: Any) -> dict[str, int]:
        """One command to the process that carries frames."""
        if self._wire is None:
            command = [sys.executable, "-m", "tests.support.wire"]
            self._wire = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        wire = self._wire
        assert wire.stdin is not None
        assert wire.stdout is not None
        wire.stdin.write(json.dumps({"do": do, "cable": cable} | more) + "\n")
        answer = wire.stdout.readline()
        assert answer, f"the process that carries frames ended with {wire.wait(END_S)} at {do} {cable}"
        return json.loads(answer)


def _file(machine: Machine) -> str:
    return str(_FOLDER / machine.namespace) if machine.namespace else ""


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout


def _sweep() -> None:
    """Remove what tests left behind that were killed."""
    for path in _FOLDER.glob(f"{PREFIX}.*"):
        owner = path.name.split(".")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, check=False)
