"""A device that only meets neighbours, as a process in a namespace: `python -m tests.support.lan_device FOLDER`.

FOLDER holds `identity.json` and `settings.json`; `status.json` in it says what happened.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_runtime import logs
from edge_runtime.carriers.certificates import Neighbour
from edge_runtime.carriers.neighbours import Home, Neighbours
from edge_runtime.identity import Identity, load_identity, save_identity
from edge_runtime.settings import NeighbourSettings
from tests.support.neighbours import NOW, Tale
from tests.support.netns import Machine

STATUS_S = 0.1


@dataclass
class LanDevice:
    """One of them, from the test's side."""

    folder: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, folder: Path, machine: Machine, identity: Identity, **settings: Any) -> LanDevice:
        folder.mkdir(parents=True)
        save_identity(folder / "identity.json", identity)
        (folder / "settings.json").write_text(NeighbourSettings(enabled=True, **settings).model_dump_json())
        command = [sys.executable, "-m", "tests.support.lan_device", str(folder)]
        with (folder / "log").open("ab") as log:
            return cls(folder, machine.popen(command, stdout=log, stderr=log))

    def status(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        assert self.process.poll() is None, (self.folder / "log").read_text()[-4_000:]
        return json.loads(path.read_text()) if path.exists() else {}


async def main(folder: Path) -> None:
    logs.configure("DEBUG")
    identity = load_identity(folder / "identity.json")
    assert identity is not None
    met: list[str] = []

    def talk(neighbour: Neighbour) -> Tale:
        met.append(str(neighbour.address))
        return Tale([])

    settings = NeighbourSettings.model_validate_json((folder / "settings.json").read_text())
    neighbours = Neighbours(settings, Home(lambda: identity, lambda: datetime.fromtimestamp(NOW, UTC), talk))

    async def tell() -> None:
        while True:
            status = neighbours.status() | {"met": sorted(set(met)), "problem": neighbours.problem}
            temporary = folder / "status.new"
            temporary.write_text(json.dumps(status))
            temporary.replace(folder / "status.json")
            await asyncio.sleep(STATUS_S)

    await asyncio.gather(neighbours.run(), tell())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
