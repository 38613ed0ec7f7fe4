"""Models that are staged, tried, committed, confirmed and pruned, one after the other, on one device."""

from __future__ import annotations

import hashlib
import sys
from datetime import UTC, date, datetime
from pathlib import Path

from edge_runtime.folder import write_durable
from edge_runtime.ota import slots as slots_module
from edge_runtime.ota import state as steps
from edge_runtime.ota.slots import Slots
from edge_runtime.ota.state import SlotState
from schemas.ota import ReleaseCustom
from tests.power.workloads import promise

CUSTOM = ReleaseCustom(
    model="digits", version="1.0.0", seq=1, recipe="a" * 64, pieces=1, created=datetime(2026, 1, 2, tzinfo=UTC)
)


def main() -> None:
    if "careless" in sys.argv:
        slots_module.sync_folder = lambda folder: None
        slots_module._move = lambda source, destination: source.replace(destination)
    root = Path(sys.argv[1])
    slots = Slots(root / "slots")
    state = SlotState(slot="digits")
    for version in range(4):
        content = bytes([version]) * 5_000
        digest = hashlib.sha256(content).hexdigest()
        staged = root / "staging" / f"{digest}.part"
        write_durable(staged, content)
        slots.stage("digits", digest, CUSTOM, staged, None)
        state = slots.store(steps.try_out(state, digest))
        state = slots.store(steps.spend(state))
        promise(tries_left=state.tries_left, trial=digest)
        promise(may_serve=digest)
        state = slots.store(steps.commit(state, date(2026, 1, 2)))
        state = slots.store(steps.confirm(state, 1.0))
        promise(serves=digest)
        slots.prune(state)


if __name__ == "__main__":
    main()
