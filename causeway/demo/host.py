"""A program of a device's owner: `python -m causeway.demo.host CONFIG COUNT` hands letters to the runtime."""

from __future__ import annotations

import sys

from edge_runtime.sdk import EdgeDevice
from schemas.registry import EventReport


def main() -> None:
    """Send COUNT events; each is on disk before the next."""
    config, count = sys.argv[1], int(sys.argv[2])
    with EdgeDevice(config) as device:
        for number in range(1, count + 1):
            device.send("event", EventReport(name="door.open", message=f"The door was opened for the {number}. time."))


if __name__ == "__main__":
    main()
