"""An outbox whose database does not wait for the disk, as a default SQLite in WAL mode with `synchronous=NORMAL`."""

from __future__ import annotations

import sys
from pathlib import Path

from schemas.events import Untyped
from tests.power.workloads import promise
from tests.power.workloads.outbox import Device


def main() -> None:
    device = Device(Path(sys.argv[1]), 1)
    device.outbox.database.read("PRAGMA synchronous=NORMAL")
    for number in range(5):
        promise(added=device.outbox.add("sample", Untyped(number=number), "normal"))


if __name__ == "__main__":
    main()
