"""The network of the chaos: the platform in the middle, every site in a namespace of its own behind a cable."""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import dataclass

from tests.chaos.processes import ChaosError
from tests.support.netns import Machine, Net, Port, Shape, unavailable

CLEAN = Shape(queue_bytes=1 << 20)
BAD: dict[str, Shape] = {
    "link_slow": Shape(rate_kbit=50),
    # Both ways together 2 s, as one `netem delay 2s` at either end gives.
    "link_far": Shape(delay_ms=1_000, queue_bytes=1 << 20),
    "link_lossy": Shape(loss=0.3, queue_bytes=1 << 20),
}
"""What a fault makes of a cable."""
_CLONE_NEWNET = 0x40000000


def enter_own_network() -> None:
    """Move this process into an empty network, so that runs side by side do not meet; before any thread is there.

    Raises:
        ChaosError: if the kernel does not let it.
    """
    reason = unavailable()
    if reason is not None:
        raise ChaosError(f"make network namespaces: {reason}; run it as root on Linux, as with `sudo make chaos`")
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWNET) != 0:
        raise ChaosError(f"make network namespaces: {os.strerror(ctypes.get_errno())}; run it as root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@dataclass(frozen=True, slots=True)
class Site:
    """A place with its cable."""

    number: int
    machine: Machine
    port: Port

    def break_link(self, kind: str, seed: int) -> None:
        """Make the cable bad; `seed` is of its losses."""
        if kind == "link_cut":
            self.port.cut()
            return
        bad = BAD[kind]
        self.port.shape(Shape(**(bad.write() | {"seed": seed})))

    def mend_link(self) -> None:
        """As new."""
        self.port.restore()
        self.port.shape(CLEAN)


def lay_out(net: Net, count: int) -> tuple[str, list[Site]]:
    """Address of the platform, and `count` sites."""
    switch = net.switch("uplink")
    here = switch.plug(net.here)
    sites = []
    for number in range(count):
        machine = net.machine(f"site{number}")
        sites.append(Site(number, machine, switch.plug(machine, CLEAN)))
    return here.address, sites
